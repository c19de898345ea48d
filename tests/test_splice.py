"""The model's verdict: the identity costs nothing, exactly; zero costs what zero costs."""

from pathlib import Path

import pytest
import torch

from strata.lm.model import edit, load
from strata.splicing import splice

CPU = torch.device("cpu")
TOKENS = torch.randint(4, 26, (9, 12), generator=torch.Generator().manual_seed(0))
ROWS = torch.ones(9, 12, dtype=torch.bool)
ROWS[:, 0] = False
ROWS[3, 7:] = False


def test_identity_is_exact_and_zero_is_zero(tiny_lm: Path):
    lm = load(tiny_lm, torch.bfloat16, CPU)
    variants = {"same": torch.clone, "zero": torch.zeros_like, "mean": torch.ones_like}
    verdicts = splice.means(splice.by_prediction(lm, TOKENS, ROWS, "resid_post", 1, variants, batch=4))
    assert verdicts["same"]["ce"] == verdicts["clean"]["ce"]
    assert verdicts["same"]["kl"] == pytest.approx(0, abs=1e-6)
    assert verdicts["zero"]["kl"] > 0
    same, zero = splice.scores(verdicts, "same"), splice.scores(verdicts, "zero")
    assert (same["delta_ce"], same["ce_recovered"]) == (
        0,
        1 if verdicts["zero"]["ce"] > verdicts["clean"]["ce"] else None,
    )
    assert zero["ce_sae"] == zero["ce_zero"]


def test_cross_entropy_is_that_of_transformers(tiny_lm: Path):
    lm = load(tiny_lm, torch.float32, CPU)
    ours = splice.means(splice.by_prediction(lm, TOKENS, ROWS, "resid_post", 1, {"zero": torch.zeros_like}))

    def zeroed(x):
        return torch.where(ROWS[:, :, None], 0.0, x)

    def theirs() -> torch.Tensor:
        scores = lm.model(input_ids=TOKENS).logits[:, :-1].log_softmax(-1)
        return scores[ROWS[:, 1:]]

    targets = TOKENS[:, 1:][ROWS[:, 1:]][:, None]
    clean = theirs()
    with edit(lm, "resid_post", 1, zeroed):
        zero = theirs()
    assert ours["clean"]["ce"] == pytest.approx(float(-clean.gather(1, targets).mean()), rel=1e-5)
    assert ours["zero"]["ce"] == pytest.approx(float(-zero.gather(1, targets).mean()), rel=1e-5)
    assert ours["zero"]["kl"] == pytest.approx(float((clean.exp() * (clean - zero)).sum(1).mean()), rel=1e-4)


def test_special_positions_are_left_alone(gpt2: Path):
    lm = load(gpt2, torch.float32, CPU)
    seen = []

    def replace(x):
        seen.append(len(x))
        return x

    splice.means(splice.by_prediction(lm, TOKENS, ROWS, "resid_post", 1, {"same": replace}, batch=9))
    assert seen == [int(ROWS.sum())]
