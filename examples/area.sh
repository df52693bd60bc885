#!/bin/sh
# An oracle in another language: the area of an airfoil's cross section, in chords squared.
#
# For each line   {"id": 0, "design": [0.17, …, 0.002]}   it prints a line   {"id": 0, "value": 0.083}
# A design is 18 Kulfan numbers: 8 upper weights, 8 lower weights, the leading edge (which moves both sides alike),
# the trailing edge. The area is linear in them: the integral of sqrt(x) (1-x) times each Bernstein polynomial.
while read -r line; do
    printf '%s\n' "$line" | awk '{
        id = $0; sub(/.*"id": */, "", id); sub(/[^0-9].*/, "", id)
        numbers = $0; sub(/.*"design": *\[/, "", numbers); sub(/\].*/, "", numbers)
        if (split(numbers, w, ",") != 18) {
            printf "{\"id\": %d, \"error\": \"expected 18 numbers\"}\n", id
            next
        }
        integral = 1                              # Beta(1.5, 9) = 1 / (1.5 · (2.5/1) · (3.5/2) ··· (9.5/8))
        for (k = 1; k <= 8; k++) integral *= k / (k + 1.5)
        integral /= 1.5
        area = w[18] / 2
        for (i = 0; i < 8; i++) {
            area += integral * (w[i + 1] - w[i + 9])
            integral *= (7 - i) / (i + 1) * (i + 1.5) / (8 - i)    # comb(7, i) Beta(i + 1.5, 9 - i), one further
        }
        if (area > 0.12) printf "{\"id\": %d, \"error\": \"does not fit the mould: area %.3f\"}\n", id, area
        else printf "{\"id\": %d, \"value\": %.9g}\n", id, area
    }'
done
