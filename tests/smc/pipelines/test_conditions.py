"""Prompts: from lists and files, too long ones, and which island has which."""

from types import SimpleNamespace

import pytest
import torch

from experiments.tiny_pipelines import N_TOKENS, save_tiny
from smc.errors import PriorError
from smc.priors.pipelines import Prompting, StableDiffusionPrior, StableDiffusionXLPrior
from smc.priors.pipelines.conditions import Conditions


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_tiny("stable_diffusion", tmp_path_factory.mktemp("saved"))


def test_a_file_has_one_prompt_a_line(tmp_path, saved):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  red house \n", encoding="utf-8")
    assert Prompting.of((), path, 1.0).prompts == ("a cat", "red house")
    prior = StableDiffusionPrior.from_pretrained(saved, prompts_file=path, n_steps=2)
    assert prior.prompts == ("a cat", "red house")


@pytest.mark.parametrize(
    ("prompts", "content", "said"),
    [
        ((), None, r"no prompt is given; set prompts: \[a photo of a cat\] or prompts_file"),
        (("a cat",), "a dog", "prompts and prompts_file are both given; keep one"),
        ("a cat", None, r"must be a list of texts, got the text 'a cat'; write \['a cat'\]"),
        ((), "\n \n", "holds no prompt; expected one a line"),
    ],
)
def test_prompts_that_cannot_be_used(prompts, content, said, tmp_path):
    path = None
    if content is not None:
        path = tmp_path / "prompts.txt"
        path.write_text(content)
    with pytest.raises(PriorError, match=said):
        Prompting.of(prompts, path, 5.0)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PriorError, match=r"cannot read prompts from .*no\.txt"):
        Prompting.of((), tmp_path / "no.txt", 5.0)


def test_a_prompt_that_is_too_long_says_what_is_lost(saved):
    words = " ".join(["cat"] * (N_TOKENS - 2))
    with pytest.warns(UserWarning, match=f"takes {N_TOKENS}: 'red house' is cut off"):
        StableDiffusionPrior.from_pretrained(saved, prompts=[f"{words} red house"], n_steps=2)


def test_a_prompt_that_just_fits_says_nothing(saved, recwarn):
    StableDiffusionPrior.from_pretrained(saved, prompts=[" ".join(["cat"] * (N_TOKENS - 2))], n_steps=2)
    assert [str(w.message) for w in recwarn if "cut off" in str(w.message)] == []


def test_both_tokenizers_of_xl_are_asked(tmp_path):
    folder = save_tiny("stable_diffusion_xl", tmp_path)
    with pytest.warns(UserWarning, match="cut off") as warned:
        StableDiffusionXLPrior.from_pretrained(folder, prompts=[" ".join(["cat"] * 99)], n_steps=2)
    assert sum("cut off" in str(w.message) for w in warned) == 1, "once, though both cut it alike"


def test_a_negative_prompt_that_is_cut_warns_too(saved):
    with pytest.warns(UserWarning, match="cut off"):
        StableDiffusionPrior.from_pretrained(
            saved, prompts=["a cat"], negative_prompt=" ".join(["cat"] * 99), n_steps=2
        )


def test_a_tokenizer_without_an_end_mark_loses_the_last_words():
    class Words:
        model_max_length = 3
        all_special_ids = ()

        def __call__(self, prompt, **_):
            return SimpleNamespace(input_ids=prompt.split())

        def decode(self, words):
            return " ".join(words)

    with pytest.warns(UserWarning, match="takes 3: 'four five' is cut off"):
        Prompting(("one two three four five",), 1.0).warn_of_cuts([(Words(), None)])
    with pytest.warns(UserWarning, match="takes 4: 'five' is cut off"):
        Prompting(("one two three four five",), 1.0).warn_of_cuts([(Words(), 4)])


@pytest.mark.parametrize("scale", [0.5, -3.0, float("nan"), float("inf")])
def test_guidance_that_makes_no_sense(scale):
    with pytest.raises(PriorError, match=f"at least 1, which is no guidance, got {scale}"):
        Prompting(("a cat",), scale)


def test_a_negative_prompt_needs_guidance():
    with pytest.raises(PriorError, match="no effect without guidance; set guidance_scale above 1"):
        Prompting(("a cat",), 1.0, "blurry")


def test_no_prompts_at_all():
    with pytest.raises(PriorError, match=r"expected a list of prompts, each a text, got \[\]"):
        Prompting((), 5.0)


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\n".encode())
    assert Prompting.of((), tmp_path / "prompts.txt", 5.0).prompts == ("a cat",)


def test_embeddings_that_are_not_finite():
    with pytest.raises(PriorError, match="a text encoder overflows float16"):
        Conditions({"e": torch.tensor([[torch.inf]])}).checked()


def test_rows_without_islands_are_refused_where_prompts_differ(saved):
    prior = StableDiffusionPrior.from_pretrained(saved, prompts=["a cat", "a dog"], n_steps=2)
    for n in (3, 2, 1):
        x = prior.init(n, torch.Generator().manual_seed(0))
        with pytest.raises(
            PriorError, match=rf"2 prompts, one an island, and got {n} rows: ask prior\.of_isl"
        ):
            prior.denoise(x, prior.steps[0][0])


def test_islands_take_prompts_in_turn():
    conditions = Conditions({"e": torch.arange(3.0)[:, None]}, {"e": -torch.arange(3.0)[:, None]}, 2.0)
    own = conditions.of(torch.tensor([4, 0, 2, 3]))
    assert own.positive["e"].flatten().tolist() == [1, 0, 2, 0]
    assert own.negative["e"].flatten().tolist() == [-1, 0, -2, 0]
    seen = []

    def network(x, t, embeddings):
        seen.append((len(x), t))
        return x + embeddings["e"]

    out = own.output(network, torch.zeros(4, 1), 7.0)
    assert seen == [(8, 7.0)], "both passes are one batch"
    torch.testing.assert_close(out.flatten(), torch.tensor([3.0, 0.0, 6.0, 0.0]))  # -e + 2·(e - (-e)) = 3e


def test_without_guidance_there_is_one_pass():
    sizes = []
    conditions = Conditions({"e": torch.zeros(1, 1)})
    conditions.output(lambda x, t, e: sizes.append(len(x)) or x, torch.zeros(4, 1), 0.0)
    assert sizes == [4]


# ---------------------------------------------------------------- sizes
@pytest.mark.parametrize(("height", "width", "near"), [(17, 16, 16), (16, 31, 32), (0, 16, 2), (-2, 16, 2)])
def test_sizes_that_cannot_be_cut_into_cells(height, width, near, saved):
    with pytest.raises(
        PriorError, match=f"must be a multiple of 2 pixels for this model, got .*; try {near}"
    ):
        StableDiffusionPrior.from_pretrained(saved, prompts=["a cat"], height=height, width=width)


def test_another_size(saved):
    prior = StableDiffusionPrior.from_pretrained(saved, prompts=["a cat"], height=24, n_steps=2)
    assert prior.event_shape == (4, 12, 8)
    assert prior.decode(torch.zeros(1, 4, 12, 8)).shape == (1, *prior.design_shape) == (1, 3, 24, 16)
