"""Tables and files that go to a laboratory and come back: what is read, what is refused, what is combined."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbo.desk import Asked
from bbo.errors import ConfigError
from bbo.exchange import replicates
from bbo.exchange.folder import write_folder
from bbo.exchange.plates import answers_of, disarmed, given_of, read_plate, write_csv, write_plate
from oracles.callables import ByHand
from oracles.errors import OracleError
from oracles.evaluation import Evaluation


def asked(n=2, shape=(3,)):
    designs = np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)
    return [Asked(i + 1, design, f"uid-0-{i}") for i, design in enumerate(designs)]


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


class TestReplicates:
    def test_one_answer_is_itself(self):
        answer = Evaluation({"value": 1.0}, noise_std={"value": 0.1}, cost=2.0)
        assert replicates([answer]) == answer
        assert replicates([1.5]) == Evaluation.of(1.5)
        with pytest.raises(OracleError, match="at least one answer"):
            replicates([])

    def test_unknown_noise_is_the_standard_error_of_the_sample(self):
        values = [1.0, 2.0, 4.0, 5.0]
        combined = replicates(values)
        assert combined.outcomes["value"] == pytest.approx(np.mean(values))
        assert combined.noise_std["value"] == pytest.approx(np.std(values, ddof=1) / 2)
        assert combined.cost == 4.0
        assert [r["outcomes"] for r in combined.metadata["replicates"]] == [{"value": v} for v in values]

    def test_known_noise_weighs(self):
        """The posterior of a constant under independent normal noise."""
        answers = [
            Evaluation({"value": 1.0}, noise_std={"value": 0.5}),
            Evaluation({"value": 4.0}, noise_std={"value": 1.0}),
        ]
        combined = replicates(answers)
        assert combined.outcomes["value"] == pytest.approx((4 * 1.0 + 1 * 4.0) / 5)
        assert combined.noise_std["value"] == pytest.approx(1 / math.sqrt(5))

    def test_equal_readings_are_not_noiseless(self):
        assert replicates([2.0, 2.0, 2.0]).noise_std == {}

    def test_failures_count_only_where_nothing_else_came(self):
        mixed = replicates([1.0, Evaluation.failed("spilled"), 3.0])
        assert mixed.outcomes == {"value": 2.0}
        assert mixed.metadata["replicates"][1]["error"] == "spilled"
        failed = replicates(
            [Evaluation.failed("spilled"), Evaluation.failed("burnt"), Evaluation.failed("burnt")]
        )
        assert failed.error == "spilled; burnt"
        assert replicates([{"a": 1.0}, {"b": 1.0}]).error == "the replicates have no outcome in common"


class TestTables:
    def test_what_is_written_is_read_back_to_the_bit(self, tmp_path):
        items = asked(5)
        write_plate(tmp_path / "p.csv", items, "value")
        rows = read_plate(tmp_path / "p.csv", "value")
        assert [(row.query, row.key) for row in rows] == [(item.id, item.key) for item in items]
        assert all(np.array_equal(row.design, item.design) for row, item in zip(rows, items, strict=True))
        assert all(row.evaluation is None for row in rows)

    def test_values_failures_costs_and_further_outcomes(self, tmp_path):
        path = table(
            tmp_path / "t.csv",
            "\ufeffquery;lift;noise_std;cost;error;outcome.drag;noise_std.drag;operator\n"
            "2;1.5;0.1;3;;0.25;0.5;Ada\n\n1;;;;fell over;;;\n3;;;;;;;\n",
        )
        first, second, third = read_plate(path, "lift")
        assert first.evaluation == Evaluation(
            {"lift": 1.5, "drag": 0.25},
            noise_std={"lift": 0.1, "drag": 0.5},
            cost=3.0,
            metadata={"notes": {"operator": "Ada"}},
        )
        assert second.evaluation == Evaluation.failed("fell over")
        assert third.evaluation is None
        assert answers_of([first, second, third]) == {2: first.evaluation, 1: second.evaluation}
        assert [row.line for row in (first, second, third)] == [2, 4, 5]

    def test_every_mistake_is_named_with_its_line(self, tmp_path):
        text = "query,x0,x1,value,noise_std,cost,error\n1,1,2,soup,,,\n2.5,,,1,,,\n3,,,nan,,,\n4,,,1,-1,,\n"
        path = table(tmp_path / "t.csv", text + '5,,,,1,,\n6,1,,2,,,\n7,,,1,,,broken\n8,,,"1,5",,,\n')
        with pytest.raises(ConfigError) as refused:
            read_plate(path, "value")
        lines = str(refused.value).splitlines()
        assert lines[0] == f"{path}:"
        for number, said in enumerate(
            [
                "line 2: value must be a number, got 'soup'",
                "line 3: query must be a whole number, got '2.5'",
                "line 4: value must be a finite number, got nan; leave it empty",
                "line 5: noise_std is a standard deviation, at least 0, got -1",
                "line 6: noise_std is there, but no value",
                "line 7: a design needs all of its numbers",
                "line 8: it has a value and an error",
                "line 9: value must be a number, got '1,5'; write a point, not a comma",
            ],
            start=1,
        ):
            assert said in lines[number]

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("", "is empty"),
            ("query,value,value\n1,2,3\n", "the column value stands twice"),
            ("query,x0,x2,value\n1,2,3,4\n", "expected the design columns x0, x1"),
            ("query,value\n1,2,5\n", "line 2 has more cells than the header"),
        ],
    )
    def test_no_such_table_is_refused(self, tmp_path, content, said):
        with pytest.raises(ConfigError, match=said):
            read_plate(table(tmp_path / "t.csv", content), "value")

    def test_unreadable_files_are_refused(self, tmp_path):
        (tmp_path / "latin.csv").write_bytes("query,Flügel\n".encode("latin-1"))
        with pytest.raises(ConfigError, match="not UTF-8"):
            read_plate(tmp_path / "latin.csv", "value")
        with pytest.raises(ConfigError, match="No such file"):
            read_plate(tmp_path / "nowhere.csv", "value")

    def test_rows_of_the_same_design_are_replicates(self, tmp_path):
        path = table(tmp_path / "t.csv", "x0,x1,value\n1,2,3\n1,2,5\n0,0,1\n")
        designs, evaluations = given_of(read_plate(path, "value"))
        assert designs.tolist() == [[1, 2], [0, 0]]
        assert [e.outcomes["value"] for e in evaluations] == [4.0, 1.0]

    @pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
    def test_no_spreadsheet_calculates_what_an_oracle_said(self, tmp_path, text):
        write_csv(tmp_path / "t.csv", ["error", text], [[text, 1.0]])
        with (tmp_path / "t.csv").open(newline="") as file:
            (header, row) = list(csv.reader(file))
        assert header[1] == row[0] == f"'{text}"

    @pytest.mark.parametrize("cell", ["-1.5", "+2", "-1e-5", -3.0, None, "fine", ""])
    def test_numbers_and_ordinary_text_stay(self, cell):
        assert disarmed(cell) == cell


class TestFolders:
    def test_images_are_png_and_the_table_names_them(self, tmp_path):
        pixels = np.linspace(-0.5, 1.5, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(np.float32)
        items = [Asked(i + 7, image, f"k{i}") for i, image in enumerate(pixels)]
        write_folder(tmp_path / "out", items, ByHand(), "value")
        image = np.asarray(Image.open(tmp_path / "out" / "query-7.png"))
        assert image.shape == (4, 5, 3)
        expected = np.rint(np.clip(pixels[0], 0, 1) * 255).transpose(1, 2, 0)
        assert np.array_equal(image, expected)
        rows = read_plate(tmp_path / "out" / "answers.csv", "value")
        assert [(row.query, row.design) for row in rows] == [(7, None), (8, None)]
        assert "query-8.png" in (tmp_path / "out" / "answers.csv").read_text()

    def test_outlines_are_dat_files(self, tmp_path):
        class Drawn(ByHand):
            def outline(self, design):
                return torch.tensor([[1.0, 0.0], [0.0, 0.5], [1.0, float(design[0])]])

            def references(self, n):
                return []

        write_folder(tmp_path / "out", asked(1), Drawn(), "value")
        lines = (tmp_path / "out" / "query-1.dat").read_text().splitlines()
        assert lines[:3] == ["query-1", "1.00000000 0.00000000", "0.00000000 0.50000000"]
        assert float(lines[3].split()[1]) == pytest.approx(float(asked(1)[0].design[0]), abs=1e-8)

    def test_an_oracle_that_writes_is_asked_first(self, tmp_path):
        class Writing(ByHand):
            suffix = ".recipe"

            def write_design(self, design, path):
                Path(path).write_text(f"mix {design.tolist()}")

        write_folder(tmp_path / "out", asked(2), Writing(), "value")
        assert (tmp_path / "out" / "query-2.recipe").read_text().startswith("mix [")

    def test_nothing_is_overwritten_and_shapes_without_a_format_are_refused(self, tmp_path):
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(ConfigError, match="has files in it already"):
            write_folder(tmp_path, asked(1), ByHand(), "value")
        with pytest.raises(ConfigError, match=r"shape \(3,\) have no file format here; name a .csv"):
            write_folder(tmp_path / "out", asked(1), ByHand(), "value")
        assert not (tmp_path / "out").exists()
