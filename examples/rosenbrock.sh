#!/bin/sh
# An oracle in another language: minus the Rosenbrock function of (x, y), at best 0 at (1, 1).
# For each line   {"id": 0, "design": [1.0, 2.0]}   it prints a line   {"id": 0, "value": -100}
while read -r line; do
    printf '%s\n' "$line" | awk '{
        id = $0; sub(/.*"id": */, "", id); sub(/[^0-9].*/, "", id)
        design = $0; sub(/.*"design": *\[/, "", design); sub(/\].*/, "", design)
        if (split(design, x, ",") != 2) {
            printf "{\"id\": %d, \"error\": \"expected two numbers\"}\n", id
        } else {
            a = 1 - x[1]; b = x[2] - x[1] * x[1]
            printf "{\"id\": %d, \"value\": %.17g}\n", id, -(a * a + 100 * b * b)
        }
    }'
done
