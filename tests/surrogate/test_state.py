import dataclasses
import hashlib
import importlib
import json
import os
import pkgutil

import pytest
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

import surrogate
from surrogate import state
from surrogate.averaged_gp import AveragedGP
from surrogate.base import Dataset, Posterior, Surrogate
from surrogate.ensemble import DeepEnsemble
from surrogate.errors import SurrogateError
from surrogate.feasibility import ConstantFeasibility, Feasibility, GPFeasibility
from surrogate.features import Flatten
from surrogate.gp import ExactGP
from surrogate.kernels import RBF
from surrogate.neural_linear import NeuralLinear
from surrogate.sparse_gp import SparseGP
from tests.contracts.surrogate_contract import observations, queries, seeded

ENSEMBLE = DeepEnsemble(n_members=2, width=4, n_iterations=1)
NOISY = Dataset(observations(9).X, observations(9).y, torch.full((9,), 0.1, dtype=torch.float64))
RECIPES = {
    "ensemble": ENSEMBLE,
    "ensemble that learns noise": dataclasses.replace(ENSEMBLE, learns_noise=True),
    "gp": ExactGP(max_iterations=1),
    "gp with another kernel": ExactGP(max_iterations=1, kernel=RBF()),
    "sparse_gp": SparseGP(n_inducing=5, max_iterations=1),
    "sparse_gp with another kernel": SparseGP(n_inducing=5, max_iterations=1, kernel=RBF()),
    "averaged_gp": AveragedGP(max_iterations=1),
    "averaged_gp with another kernel": AveragedGP(max_iterations=1, kernel=RBF()),
    "neural_linear": NeuralLinear(width=3, n_iterations=1, n_draws=2),
}


def fitted(name):
    match name:
        case "feasibility":
            X = observations(9).X
            return GPFeasibility(max_iterations=1).fit(X, X[:, 0] > 0, generator=seeded())
        case "constant feasibility":
            return ConstantFeasibility(1 / 3)
        case "neural_linear of known noise":
            return RECIPES["neural_linear"].fit(NOISY, generator=seeded())
    return RECIPES[name].fit(observations(9), generator=seeded())


FITTED = [*RECIPES, "neural_linear of known noise", "feasibility", "constant feasibility"]


def leaves(value):
    """All tensors and plain values of a fitted thing, with the classes that hold them."""
    if dataclasses.is_dataclass(value):
        inside = [leaf for f in dataclasses.fields(value) for leaf in leaves(getattr(value, f.name))]
        return [type(value), *inside]
    if isinstance(value, tuple):
        return [tuple, *(leaf for item in value for leaf in leaves(item))]
    return [value]


def assert_same_bits(one, other):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert a.contiguous().view(torch.uint8).tolist() == b.contiguous().view(torch.uint8).tolist()
        else:
            assert a == b


@pytest.fixture
def saved(tmp_path):
    state.save(fitted("ensemble"), tmp_path)
    return tmp_path


def changed(folder, change):
    """Change the JSON file's content in place."""
    path = folder / state.STRUCTURE
    structure = json.loads(path.read_text())
    change(structure)
    path.write_text(json.dumps(structure))


def tensor_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def with_tensors(folder, content):
    """Replace the tensor file, as somebody would who keeps the digest in step."""
    tensor_file(folder).write_bytes(content)
    changed(folder, lambda s: s.update(sha256=hashlib.sha256(content).hexdigest()))


class TestRoundTrip:
    @pytest.mark.parametrize("name", FITTED)
    def test_is_bit_for_bit(self, name, tmp_path):
        before = fitted(name)
        state.save(before, tmp_path / "deep" / "folder")
        after = state.load(tmp_path / "deep" / "folder")
        assert_same_bits(before, after)
        if isinstance(before, Surrogate):
            X = queries().requires_grad_()
            one, other = before.posterior(X), after.posterior(X)
            assert torch.equal(one.mean, other.mean)
            assert torch.equal(one.std, other.std)
            told = (posterior.noise_std for posterior in (one, other))
            assert_same_bits(*told)
        else:
            assert torch.equal(before.log_probability(queries()), after.log_probability(queries()))

    def test_every_fitted_class_of_the_package_can_be_saved(self):
        for module in pkgutil.iter_modules(surrogate.__path__):
            for name, made in vars(importlib.import_module(f"surrogate.{module.name}")).items():
                is_fitted = hasattr(made, "posterior") or hasattr(made, "log_probability")
                if dataclasses.is_dataclass(made) and is_fitted:
                    assert state.MODULES.get(name) == made.__module__, f"{name} is missing in the table"

    def test_every_class_of_the_table_exists(self):
        for name, module in state.MODULES.items():
            assert dataclasses.is_dataclass(getattr(importlib.import_module(module), name))

    @pytest.mark.parametrize("value", [1 / 3, 5e-324, float("inf"), float("nan"), -0.0])
    def test_numbers_keep_their_bits(self, value, tmp_path):
        state.save(ConstantFeasibility(value), tmp_path)
        assert state.load(tmp_path).probability.hex() == value.hex()
        assert "NaN" not in (tmp_path / state.STRUCTURE).read_text()  # not JSON
        assert "Infinity" not in (tmp_path / state.STRUCTURE).read_text()

    def test_replaces_what_was_saved_there_and_leaves_nothing_else(self, saved):
        other = fitted("gp")
        state.save(other, saved)
        assert_same_bits(state.load(saved), other)
        assert len(list(saved.iterdir())) == 2

    def test_views_and_shared_tensors_are_saved_as_they_read(self, tmp_path):
        one = torch.tensor(2.0, dtype=torch.float64)
        gp = dataclasses.replace(
            fitted("gp"), noise_std=one.expand(9), weights=torch.arange(18.0).double()[::2]
        )
        state.save(gp, tmp_path)
        assert_same_bits(state.load(tmp_path), gp)

    @pytest.mark.parametrize("name", ["ensemble", "gp", "averaged_gp"])
    def test_refits_from_what_was_saved_as_from_what_was_fitted(self, name, tmp_path):
        state.save(fitted(name), tmp_path)
        refits = [
            RECIPES[name].refit(start, observations(), generator=seeded())
            for start in (state.load(tmp_path), fitted(name))
        ]
        assert_same_bits(*refits)

    def test_a_kernel_that_is_none_is_refused(self, tmp_path):
        state.save(fitted("gp"), tmp_path)
        changed(tmp_path, lambda s: s["root"]["fields"].update(kernel="rbf"))
        with pytest.raises(SurrogateError, match="expected kernel of FittedGP to be Kernel, got 'rbf'"):
            state.load(tmp_path)


class Homemade:
    """A surrogate of a user's own."""

    def posterior(self, X):
        return Posterior(X[:, 0], X[:, 0])


class TestSave:
    def test_refuses_what_has_no_place(self, tmp_path):
        with pytest.raises(
            SurrogateError, match="this is a Homemade, which cannot be saved: expected tensors"
        ):
            state.save(Homemade(), tmp_path / "x")
        assert not (tmp_path / "x").exists()

    @pytest.mark.parametrize("value", [[2.5], {"a": 1}, torch.nn.Linear(1, 1), Flatten()])
    def test_names_the_field_that_has_no_place(self, value, tmp_path):
        odd = fitted("ensemble")
        object.__setattr__(odd.prior, "weights", (*odd.prior.weights, value))
        said = f"the field prior.weights.2 holds a {type(value).__name__}, which cannot be saved"
        with pytest.raises(SurrogateError, match=said):
            state.save(odd, tmp_path / "x")

    def test_a_class_of_the_same_name_from_elsewhere_is_another(self, tmp_path):
        @dataclasses.dataclass(frozen=True)
        class FittedEnsemble(Homemade):
            x: int = 1

        with pytest.raises(SurrogateError, match="FittedEnsemble, which cannot be saved"):
            state.save(FittedEnsemble(), tmp_path)

    @pytest.mark.parametrize("dies_at", [1, 2])
    def test_an_interrupted_save_leaves_the_old_state(self, saved, dies_at, monkeypatch):
        replace, calls = os.replace, []

        def dying(*args):
            calls.append(args)
            if len(calls) == dies_at:
                raise OSError("disk full")
            return replace(*args)

        monkeypatch.setattr(os, "replace", dying)
        with pytest.raises(SurrogateError, match=r"cannot write the surrogate to .*disk full"):
            state.save(fitted("gp"), saved)
        monkeypatch.undo()
        assert_same_bits(state.load(saved), fitted("ensemble"))
        assert not list(saved.glob("*.unfinished"))

    def test_a_file_in_the_way_is_a_surrogate_error(self, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(SurrogateError, match="cannot write the surrogate to"):
            state.save(fitted("ensemble"), tmp_path / "x")


class TestLoad:
    def refused(self, folder, match):
        with pytest.raises(SurrogateError, match=match):
            state.load(folder)

    def test_nothing_there(self, tmp_path):
        self.refused(tmp_path / "nowhere", r"no surrogate at .*nowhere: expected surrogate.json")

    @pytest.mark.parametrize("keep", [0, 1, 100, -1])
    def test_torn_tensors(self, saved, keep):
        path = tensor_file(saved)
        path.write_bytes(path.read_bytes()[:keep])
        self.refused(saved, "is torn or was changed")

    @pytest.mark.parametrize("keep", [0, 1, 100, -5])
    def test_torn_tensors_with_a_digest_that_fits(self, saved, keep):
        with_tensors(saved, tensor_file(saved).read_bytes()[:keep])
        self.refused(saved, "is not a safetensors file")

    def test_one_flipped_bit(self, saved):
        path = tensor_file(saved)
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        self.refused(saved, "is torn or was changed")

    def test_tensors_missing(self, saved):
        tensor_file(saved).unlink()
        self.refused(saved, "cannot read .*safetensors, which surrogate.json names")

    @pytest.mark.parametrize("keep", [0, 1, 100, -5])
    def test_torn_structure(self, saved, keep):
        path = saved / state.STRUCTURE
        path.write_bytes(path.read_bytes()[:keep])
        self.refused(saved, "cannot read .*surrogate.json: torn, or not JSON")

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"3", b"{}", b"[" * 100_000])
    def test_another_file(self, saved, content):
        (saved / state.STRUCTURE).write_bytes(content)
        self.refused(saved, "torn, or not JSON|not written by surrogate.state.save")

    def test_another_version(self, saved):
        changed(saved, lambda s: s.update(version=2))
        self.refused(saved, "has format version 2; this program reads version 1")

    @pytest.mark.parametrize("name", ["../tensors.safetensors", "/etc/passwd", 3, "..", ""])
    def test_no_file_elsewhere_is_read(self, saved, name):
        changed(saved, lambda s: s.update(tensors=name))
        self.refused(saved, "expected the name of a file beside it as tensors, got|cannot read")

    def test_keys_missing(self, saved):
        changed(saved, lambda s: s.pop("sha256"))
        self.refused(saved, "expected the keys format, root, sha256, tensors, version, got")

    @pytest.mark.parametrize("name", ["Popen", "surrogate.ensemble:DeepEnsemble", "DeepEnsemble", ""])
    def test_unknown_class(self, saved, name):
        changed(saved, lambda s: s["root"].update({"class": name}))
        self.refused(saved, f"unknown class '{name}' in surrogate.json: expected one of FittedEnsemble, ")

    def test_a_class_that_is_no_surrogate(self, saved):
        changed(saved, lambda s: s.update(root=s["root"]["fields"]["x_scale"]))
        self.refused(saved, "holds tensors that surrogate.json does not name")
        keep = {
            name: t for name, t in tensors_of(tensor_file(saved).read_bytes()).items() if "x_scale" in name
        }
        with_tensors(saved, bytes_of(keep))
        self.refused(saved, "expected a fitted surrogate in .*, got Standardize")

    @pytest.mark.parametrize(
        "root", [None, 3, [], {"tuple": 1}, {"class": "Network"}, {"float": "1.0"}, {"extra": {}}]
    )
    def test_a_root_that_means_nothing(self, saved, root):
        changed(saved, lambda s: s.update(root=root))
        self.refused(saved, "cannot make anything of|holds tensors|expected a fitted surrogate")

    def test_a_field_missing(self, saved):
        changed(saved, lambda s: s["root"]["fields"].pop("prior_std"))
        self.refused(
            saved,
            "FittedEnsemble in .* another version: expected the fields prior, prior_std, .*got prior, t",
        )

    def test_a_field_too_many(self, saved):
        changed(saved, lambda s: s["root"]["fields"].update(depth=2))
        self.refused(saved, "expected the fields prior, .*got depth, prior")

    @pytest.mark.parametrize(("key", "value"), [("dtype", "float64"), ("shape", [1, 3])])
    def test_a_tensor_that_is_not_what_the_structure_says(self, saved, key, value):
        changed(
            saved,
            lambda s: s["root"]["fields"]["prior"]["fields"]["weights"]["tuple"][0].update({key: value}),
        )
        self.refused(saved, r"expected the tensor prior.weights.0 to be .*float32 of shape \[2, 3, 4\]")

    def test_a_structure_that_agrees_with_tensors_of_the_wrong_kind(self, saved):
        tensors = tensors_of(tensor_file(saved).read_bytes())
        tensors["prior.weights.0"] = tensors["prior.weights.0"].to(torch.int64)
        with_tensors(saved, bytes_of(tensors))
        changed(
            saved,
            lambda s: s["root"]["fields"]["prior"]["fields"]["weights"]["tuple"][0].update(dtype="int64"),
        )
        self.refused(saved, r"expected prior.weights of Network to be .*Float.* got \(tensor")

    @pytest.mark.parametrize("order", [[], [0, 1], [0, 0, 1], [0, 1, 3], ["0", 1, 2], [[0], 1, 2]])
    def test_a_layout_that_is_none(self, saved, order):
        changed(
            saved, lambda s: s["root"]["fields"]["prior"]["fields"]["weights"]["tuple"][0].update(order=order)
        )
        self.refused(saved, "expected the 3 axes of prior.weights.0 in some order, got")

    def test_a_tensor_named_twice(self, saved):
        def twice(structure):
            weights = structure["root"]["fields"]["prior"]["fields"]["weights"]["tuple"]
            weights[1] = weights[0]

        changed(saved, twice)
        self.refused(saved, "the tensor prior.weights.0 is missing from the safetensors file, or named twice")

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("prior_std", "2.5", "prior_std of FittedEnsemble to be float, got '2.5'"),
            ("prior_std", None, "prior_std of FittedEnsemble to be float, got None"),
            ("prior", 2.5, "prior of FittedEnsemble to be Network, got 2.5"),
        ],
    )
    def test_a_value_of_another_type(self, saved, key, value, said):
        changed(saved, lambda s: s["root"]["fields"].update({key: value}))
        self.refused(saved, f"expected {said}")

    def test_what_a_class_itself_refuses(self, saved):
        tensors = tensors_of(tensor_file(saved).read_bytes())
        tensors["x_scale.std"] = -tensors["x_scale.std"]
        with_tensors(saved, bytes_of(tensors))
        self.refused(saved, "expected positive std")

    def test_feasibility_is_recognised(self, tmp_path):
        state.save(ConstantFeasibility(0.5), tmp_path)
        assert isinstance(state.load(tmp_path), Feasibility)
