"""Interpret: what it says of every latent equals what the dense codes say, and it says the same twice."""

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import VOCABULARY
from killing import Killed, survives

from strata.extraction.contexts import Layout, fill, write
from strata.interpretation import codes as codes_module
from strata.interpretation import examples as find
from strata.interpretation import look as look_module
from strata.interpretation.filters import Filters, dropped, quadrants
from strata.interpretation.interpret import Source, check, interpret
from strata.interpretation.knobs import Interpret
from strata.interpretation.read import Codes, Columns, Latents, open_latents
from strata.interpretation.statistics import entropies
from strata.interpretation.text import Text, read_text
from strata.interpretation.vocabulary import of_tokens
from strata.lm.model import load
from strata.rows.shards import DTYPE, Contexts, identity, mapped, shard_name, writing
from strata.run.door import BadInput
from strata.run.params import check as checked
from strata.sae.disk import decoder_hash
from strata.sae.sae import SAE

ROOT = Path(__file__).resolve().parents[1]
ROWS, LATENTS, WIDTH, SHARD, DEAD, ALWAYS, RARE = 5000, 256, 32, 2000, 7, 9, 11
MODEL = {"name": "tiny", "revision": None, "fingerprint": "f"}


def knobs(**changes: Any) -> Interpret:
    """The default params on small windows."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["interpret"]
    values["examples"] |= changes.pop("examples", {})
    return checked({**values, "window": 4, **changes}, Interpret, "params.yaml: interpret")


def make_source(
    folder: Path, lm: Path, documents: list[list[int]], labels: list[str | None], held_out: Sequence[list[int]] = ()
) -> Source:
    """Contexts of 16 tokens as extract writes them, and random activations; the test split is ``held_out``."""
    tokens = folder / "tokens"
    layout = Layout(16, False, 1, 0, frozenset([0, 1, 2, 3]))
    tokens.mkdir(parents=True)
    test = fill(enumerate(held_out, len(documents)), layout)
    meta = write({"train": fill(enumerate(documents), layout), "validation": [], "test": test}, layout, tokens, ROWS)
    contexts = Contexts(tokens, {**meta, "model": MODEL, "corpus": "c"})
    rows = meta["rows"]
    facts: dict[str, Any] = {
        "model": MODEL, "corpus": "c", "hook": "resid_post", "dtype": "bfloat16", "layer": 0, "width": WIDTH,
        "rows": rows,
        "shard_rows": SHARD, "splits": meta["splits"], "mean": [0.0] * WIDTH, "scale": 1.0, "median_norm": 5.0,
        "shards": [{"file": shard_name(i), "rows": min(SHARD, rows - first)}
                   for i, first in enumerate(range(0, rows, SHARD))],
    }  # fmt: skip
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0)).to(DTYPE)
    for number, shard in enumerate(facts["shards"]):
        with writing(folder / shard["file"], shard["rows"], WIDTH, identity(facts, number)) as file:
            file.append(x[number * SHARD :][: shard["rows"]])
    titles = [f"title {number}" for number in range(len(documents))]
    return Source(
        mapped(folder, facts), contexts, list(titles), labels, of_tokens(load(lm, torch.float32, torch.device("cpu")))
    )


def texts() -> tuple[list[list[int]], list[str | None]]:
    random = np.random.default_rng(0)
    documents, rows = [], 0
    while rows < ROWS:
        documents.append(random.integers(4, len(VOCABULARY), random.integers(4, 20)).tolist())
        rows += len(documents[-1])
    return documents, [("cat", "dog", None)[number % 3] for number in range(len(documents))]


def make_sae(width: int = WIDTH) -> SAE:
    """About a tenth of the latents are active on a row; one never is, one always, one on a few rows."""
    random = torch.Generator().manual_seed(1)
    encoder = torch.nn.functional.normalize(torch.randn(LATENTS, width, generator=random), dim=1)
    threshold = torch.full((LATENTS,), 1.3)
    threshold[DEAD], threshold[RARE], bias = 1e6, 2.6, torch.zeros(LATENTS)
    bias[ALWAYS] = 100.0
    return SAE(encoder, bias, encoder.clone(), torch.zeros(width), threshold=threshold)


class Layer:
    """A layer's latents as interpret wrote them, and the dense codes to hold them against."""

    def __init__(self, folder: Path, lm: Path) -> None:
        self.folder, self.sae, self.knobs = folder, make_sae(), knobs()
        self.source = make_source(folder / "activations", lm, *texts())
        self.report = self.run("latents")
        self.latents = open_latents(folder / "latents")
        assert self.latents.meta["sae"] == decoder_hash(self.sae)
        x = self.source.activations.read(0, self.rows).float()
        codes = self.sae.encode(x)
        self.dense = codes.pattern.dense(codes.values).numpy().T  # (latent, row)
        self.text = self.read()

    @property
    def rows(self) -> int:
        return self.source.activations.rows

    def run(self, name: str, **changes: Any) -> dict[str, Any]:
        work = self.folder / f"{name}-work"
        work.mkdir(exist_ok=True)
        source = replace(self.source, **changes)
        return interpret(self.sae, source, self.knobs, 0, self.folder / name, work)

    def read(self) -> Text:
        work = self.folder / "text"
        work.mkdir()
        return read_text(self.source.contexts, work, self.knobs.window)

    def table(self, name: str) -> list[dict[str, Any]]:
        found = self.latents.table(name)
        assert found is not None
        return found.to_pylist()

    def examples(self, *kinds: str) -> list[dict[str, Any]]:
        return [row for row in self.table("examples") if row["kind"].partition("-")[0] in kinds]


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory, gpt2: Path) -> Layer:
    return Layer(tmp_path_factory.mktemp("layer"), gpt2)


# --- codes ----------------------------------------------------------------------------------------------------------


def test_columns_are_the_dense_codes_turned(layer: Layer):
    columns = layer.latents.columns(0, LATENTS)
    dense = np.zeros_like(layer.dense)
    dense[columns.latents(), columns.rows] = columns.values
    assert (dense == layer.dense).all() and len(columns.rows) == (layer.dense > 0).sum()
    assert all((np.diff(columns.rows[columns.of(j)]) > 0).all() for j in range(LATENTS))
    part = layer.latents.columns(20, 23)
    assert (part.rows[part.of(21)] == columns.rows[columns.of(21)]).all()


def test_ranges_hold_what_they_may_and_miss_nothing(layer: Layer):
    active = (layer.dense > 0).sum(1)
    ranges = list(layer.latents.codes.ranges(3000))
    assert [first for first, _ in ranges] == [0, *(end for _, end in ranges[:-1])] and ranges[-1][1] == LATENTS
    assert all(active[first:end].sum() <= 3000 or end == first + 1 for first, end in ranges)
    assert (ALWAYS, ALWAYS + 1) in ranges


def test_a_damaged_shard_is_named(layer: Layer, tmp_path: Path):
    broken = tmp_path / "latents"
    broken.mkdir()
    (broken / "codes").mkdir()
    for path in ["meta.json", *(f"codes/{p.name}" for p in (layer.folder / "latents" / "codes").iterdir())]:
        (broken / path).write_bytes((layer.folder / "latents" / path).read_bytes())
    last = broken / "codes" / "shard-00001.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"shard-00001\.safetensors is damaged"):
        open_latents(broken)
    last.unlink()
    with pytest.raises(BadInput, match=r"shard-00001\.safetensors is missing"):
        open_latents(broken)
    last.mkdir()
    with pytest.raises(BadInput, match=r"shard-00001\.safetensors is no file that can be read"):
        open_latents(broken)


# --- text -----------------------------------------------------------------------------------------------------------


def test_every_row_knows_its_place(layer: Layer):
    text, contexts = layer.text, layer.source.contexts
    tokens, documents = contexts.read(0, contexts.split("train")[1])
    rows = np.arange(layer.rows)
    context, position = text.place(rows)
    assert (tokens[context, position] == text.token).all()
    assert (documents[context, position] == text.document_of(rows)).all()
    window = text.window_of(rows)
    first, end = text.bounds(window)
    assert ((first <= rows) & (rows < end) & (end - first <= 4)).all() and (np.diff(window) >= 0).all()
    assert len(np.unique(window)) == text.windows
    first, end = text.around(rows)
    assert ((first <= rows) & (rows < end)).all()
    assert (text.segment[first] == text.segment[end - 1]).all()
    length = np.diff(text.starts)[text.segment]
    assert (end - first == np.minimum(length, 4)).all()


# --- statistics -----------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_dense_codes(layer: Layer):
    dense, document = layer.dense.astype(float), layer.text.document_of(np.arange(layer.rows))
    means = np.stack([dense[:, document == d].mean(1) for d in layer.text.documents], 1)
    for row in layer.table("statistics"):
        code, mean = dense[row["latent"]], means[row["latent"]]
        active = code[code > 0]
        assert row["active"] == len(active) and row["dead"] == (len(active) == 0)
        assert row["density"] == pytest.approx(len(active) / layer.rows)
        assert row["documents"] == (mean > 0).sum()
        if len(active):
            assert row["mean"] == pytest.approx(active.mean()) and row["max"] == pytest.approx(active.max())
            assert row["importance"] == pytest.approx(row["density"] * row["mean"] * row["decoder_norm"])
            p = mean[mean > 0] / mean.sum()
            assert row["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-9)
            assert row["entropy_share"] == pytest.approx(row["entropy"] / np.log(len(layer.text.documents)))
            assert row["varentropy"] == pytest.approx((p * np.log(p) ** 2).sum() - row["entropy"] ** 2, abs=1e-9)
        assert sum(row["histogram"]) == len(active)
        assert row["encoder_decoder_cosine"] == pytest.approx(1.0, abs=1e-5)


def test_importance_does_not_depend_on_the_units_of_codes(layer: Layer):
    """Codes c times as large, which rows of the decoder 1/c times as long undo; c are powers of 2, so to the bit."""
    sae, c = layer.sae, 2.0 ** (torch.arange(LATENTS) % 5 - 2)
    assert sae.threshold is not None
    scaled = {"encoder": sae.encoder * c[:, None], "b_enc": sae.b_enc * c, "threshold": sae.threshold * c}
    other = replace(sae, decoder=sae.decoder / c[:, None], **scaled)
    (work := layer.folder / "units-work").mkdir()
    interpret(other, layer.source, layer.knobs, 0, layer.folder / "units", work)
    rows = open_latents(layer.folder / "units").table("statistics")
    assert rows is not None
    for row, same in zip(rows.to_pylist(), layer.table("statistics"), strict=True):
        assert row["mean"] == same["mean"] * float(c[row["latent"]])
        assert row["importance"] == pytest.approx(same["importance"], rel=1e-6)
        assert row["dropped"] == same["dropped"]


def test_a_documents_mean_is_over_all_of_its_rows(layer: Layer):
    document = layer.text.document_of(np.arange(layer.rows))
    for row in layer.table("documents")[::200]:
        code = layer.dense[row["latent"], document == row["document"]]
        assert row["mean"] == pytest.approx(code.mean(), rel=1e-5) and row["max"] == code.max()


def test_tokens_are_counted_against_their_background(layer: Layer):
    token, n = np.asarray(layer.text.token), layer.rows
    for row in layer.table("tokens")[::97]:
        active = layer.dense[row["latent"]] > 0
        count, a, b = (active & (token == row["token"])).sum(), active.sum(), (token == row["token"]).sum()
        assert (row["count"], row["piece"]) == (count, VOCABULARY[row["token"]])
        assert row["share"] == pytest.approx(count / a) and row["background"] == pytest.approx(b / n)
        assert row["lift"] == pytest.approx(row["share"] / row["background"]) and row["lift"] > 1
        odds = (count + 0.5) * (n - a - b + count + 0.5) / ((a - count + 0.5) * (b - count + 0.5))
        assert row["log_odds"] == pytest.approx(np.log(odds))
        assert row["mean"] == pytest.approx(layer.dense[row["latent"]][active & (token == row["token"])].mean())


# --- examples -------------------------------------------------------------------------------------------------------


def test_top_equals_a_brute_force_sort(layer: Layer):
    document = layer.text.document_of(np.arange(layer.rows))
    plain = layer.knobs.examples.model_copy(update={"one_a_document": False})
    columns = layer.latents.columns(0, LATENTS)
    found = find.top(columns, find.by_strength(columns), layer.text, plain)
    shown = layer.examples("top")
    for j in range(LATENTS):
        order = np.lexsort((np.arange(layer.rows), -layer.dense[j]))
        order = order[layer.dense[j, order] > 0]
        assert found.row[found.latent == j].tolist() == order[:20].tolist()
        _, first = np.unique(document[order], return_index=True)
        mine = [row for row in shown if row["latent"] == j]
        assert [row["row"] for row in mine] == order[np.sort(first)[:20]].tolist()
        assert [row["rank"] for row in mine] == list(range(len(mine)))


def test_silent_windows_are_exactly_zero_and_from_all_over(layer: Layer):
    rows = layer.examples("zero", "near")
    for row in rows:
        first = row["row"] - (row["position"] - row["first"])
        assert not layer.dense[row["latent"], first : first + len(row["tokens"])].any()
        assert row["value"] == 0 and not any(row["values"])
    zero = [row for row in rows if row["kind"] == "zero"]
    assert len({row["document"] for row in zero}) >= len(layer.text.documents) / 2
    assert len({row["row"] for row in zero}) >= 1000
    for j in set(range(LATENTS)) - {DEAD, ALWAYS}:
        mine = [row["document"] for row in zero if row["latent"] == j]
        assert len(mine) == len(set(mine)) == 20


def test_near_misses_are_the_nearest(layer: Layer):
    there = find.pool(layer.source.activations, layer.text, 10**6, 0)
    columns = layer.latents.columns(0, LATENTS)
    for j in range(0, LATENTS, 50):
        top = [row["row"] for row in layer.examples("top") if row["latent"] == j]
        query = there.vectors[layer.text.window_of(np.array(top))].mean(0)
        cosine = (there.vectors @ (query / query.norm())).numpy()
        first, end = layer.text.bounds(there.window)
        silent = [not layer.dense[j, a:b].any() for a, b in zip(first, end, strict=True)]
        document = layer.text.document_of(first)
        seen: list[int] = []
        for window in np.argsort(-cosine):
            if silent[window] and document[window] not in document[seen]:
                seen.append(int(window))
        mine = [row["row"] for row in layer.examples("near") if row["latent"] == j]
        assert mine == [(first[w] + end[w] - 1) // 2 for w in seen[:10]]
    assert columns.first == 0


def test_random_examples_share_nothing_with_the_top(layer: Layer):
    windows: dict[tuple[str, int], set[int]] = {}
    for row in layer.examples("top", "random"):
        assert row["value"] == layer.dense[row["latent"], row["row"]] > 0
        first = row["row"] - (row["position"] - row["first"])
        rows = windows.setdefault((row["kind"], row["latent"]), set())
        rows |= set(range(first, first + len(row["tokens"])))
    assert all(not rows & windows.get(("random", j), set()) for (kind, j), rows in windows.items() if kind == "top")
    assert sum(kind == "random" for kind, _ in windows) >= LATENTS - 3


def test_deciles_are_of_their_tenth(layer: Layer):
    for row in layer.examples("decile"):
        active = np.sort(layer.dense[row["latent"]][layer.dense[row["latent"]] > 0])
        decile = int(row["kind"].partition("-")[2])
        assert np.searchsorted(active, row["value"]) * 10 // len(active) in (decile - 1, decile - 2, decile)
        assert active[len(active) * (decile - 1) // 10] <= row["value"] <= active[len(active) * decile // 10 - 1]
    assert {row["kind"] for row in layer.examples("decile") if row["latent"] == 0} == set(find.KINDS[1:11])


def test_windows_show_the_text_and_the_codes(layer: Layer):
    contexts = layer.source.contexts
    tokens, documents = contexts.read(0, contexts.split("train")[1])
    for row in layer.table("examples")[::53]:
        part = slice(row["first"], row["first"] + len(row["tokens"]))
        assert tokens[row["context"], part].tolist() == row["tokens"]
        assert set(documents[row["context"], part].tolist()) == {row["document"]}
        assert [VOCABULARY[token] for token in row["tokens"]] == row["pieces"]
        assert row["title"] == f"title {row['document']}"
        assert row["label"] == ("cat", "dog", None)[row["document"] % 3]
        first = row["row"] - (row["position"] - row["first"])
        assert layer.dense[row["latent"], first : first + len(row["tokens"])].tolist() == row["values"]


def test_the_dead_are_flagged_and_never_padded(layer: Layer):
    dead = layer.table("statistics")[DEAD]
    assert dead["dead"] and not dead["kept"] and dead["dropped"] == "dead" and dead["quadrant"] is None
    assert not any(row["latent"] == DEAD for name in ("examples", "tokens", "documents") for row in layer.table(name))
    assert layer.report["dead"] == 1
    assert (array(layer, "topk_indices_20")[DEAD] == -1).all() and np.isnan(array(layer, "topk_values_20")[DEAD]).all()
    assert not [row for row in layer.examples("zero", "near") if row["latent"] == ALWAYS]


def test_choices_do_not_depend_on_the_ranges(layer: Layer):
    def found(ranges: list[tuple[int, int]]) -> list[list[int]]:
        columns: Iterator[Columns] = (layer.latents.columns(*part) for part in ranges)
        parts = []
        for part in columns:
            order = find.by_strength(part)
            top = find.top(part, order, layer.text, layer.knobs.examples)
            some = [
                *find.deciles(part, order, layer.text, layer.knobs.examples, 0),
                find.random(part, layer.text, top, layer.knobs.examples, 0),
                find.zeros(part, layer.text, layer.knobs.examples, 0),
            ]
            parts += [[i, part.first + j, r] for i, f in enumerate(some) for j, r in zip(f.latent, f.row, strict=True)]
        return sorted(parts)

    assert found([(0, LATENTS)]) == found([(0, 10), (10, 11), (11, LATENTS)])


# --- exports ----------------------------------------------------------------------------------------------------------


def array(layer: Layer, name: str) -> np.ndarray:
    return np.load(layer.folder / "latents" / f"{name}_{LATENTS}.npy", allow_pickle=False)


def test_arrays_have_growth_signals_names(layer: Layer):
    rows, values = array(layer, "topk_indices_20"), array(layer, "topk_values_20")
    assert rows.dtype == np.int32 and values.dtype == np.float32 and rows.shape == (LATENTS, 20)
    there = rows >= 0
    latent, _ = there.nonzero()
    assert (layer.dense[latent, rows[there]] == values[there]).all()
    zero, likeness = array(layer, "zero_indices_10"), array(layer, "zero_similarities_10")
    latent, _ = (zero >= 0).nonzero()
    assert not layer.dense[latent, zero[zero >= 0]].any()
    assert (np.abs(likeness[zero >= 0]) <= 1.001).all() and (np.diff(likeness[0]) <= 0).all()
    assert (array(layer, "random_indices_10")[0] >= 0).all()


def test_lines_say_what_the_table_says(layer: Layer):
    with gzip.open(layer.folder / "latents" / "examples.jsonl.gz", "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    rows = layer.table("examples")
    assert len(lines) == len(rows)
    for line, row in zip(lines[::91], rows[::91], strict=True):
        assert {**line, "value": 0, "values": 0} == {**row, "value": 0, "values": 0}
        assert line["values"] == pytest.approx(row["values"], rel=1e-5)


def test_a_second_run_writes_the_same_bytes(layer: Layer):
    assert layer.run("again") == layer.report

    def hashes(name: str) -> dict[str, str]:
        files = sorted(path for path in (layer.folder / name).rglob("*") if path.is_file())
        return {
            str(path.relative_to(layer.folder / name)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }

    assert hashes("again") == hashes("latents")


# --- filters ----------------------------------------------------------------------------------------------------------


def filtered(
    acts: np.ndarray, probability: list[float] | None = None, **bounds: dict[str, float | None]
) -> tuple[list[float], list[str | None]]:
    """Entropies and reasons for hand-made latents, (document, latent) means; ``probability``: that they come again."""
    none = {"min": None, "max": None}
    filters = checked(
        {"entropy": none, "firing": none, "importance": none, "again": none, "quadrants": None, **bounds}, Filters, "x"
    )
    latent, document = acts.T.nonzero()
    entropy, varentropy = entropies(latent, acts.T[latent, document], acts.shape[1])
    firing = (acts > 0).mean(0)
    quadrant = quadrants(entropy, varentropy, firing > 0)
    comes_again = np.array(probability or [np.nan] * acts.shape[1])  # NaN: not known
    return entropy.tolist(), dropped(entropy / np.log(len(acts)), firing, acts.mean(0), comes_again, quadrant, filters)


def test_the_filter_drops_what_it_should_and_does_not_mind_duplicates():
    acts = np.zeros((100, 4))
    acts[:, 0], acts[3, 1], acts[:50, 3] = 1.0, 1.0, 1.0
    bounds: dict[str, Any] = {"entropy": {"min": 0.054, "max": 0.99}, "firing": {"min": 0.1, "max": 0.95}}
    entropy, reasons = filtered(acts, **bounds)
    assert entropy == pytest.approx([np.log(100), 0, 0, np.log(50)], abs=1e-9)
    assert reasons == ["entropy_high", "entropy_low", "dead", None]
    assert filtered(acts, firing=bounds["firing"])[1] == ["firing_high", "firing_low", "dead", None]
    doubled = filtered(np.concatenate([acts, acts]), **bounds)[1]
    assert [reason is None for reason in doubled] == [reason is None for reason in reasons]
    with pytest.raises(BadInput, match=r"min 0\.5 is above max 0\.1"):
        filtered(acts, firing={"min": 0.5, "max": 0.1})


def test_latents_that_seldom_come_again_are_dropped():
    """What is not known drops nothing."""
    _, reasons = filtered(np.ones((10, 4)), [1.0, 0.5, 0.25, np.nan], again={"min": 0.5, "max": None})
    assert reasons == [None, None, "again_low", None]


def test_quadrants_split_at_the_medians():
    alive = np.array([True, True, True, True, False])
    found = quadrants(np.array([0, 1, 0, 1, 9.0]), np.array([0, 0, 1, 1, 9.0]), alive)
    assert found == ["flowing", "careful", "exploring", "resampling", None]


def test_the_report_counts_every_reason(layer: Layer):
    rows = layer.table("statistics")
    assert layer.report["kept"] == sum(row["kept"] for row in rows)
    assert sum(layer.report["dropped"].values()) + layer.report["kept"] == LATENTS
    assert rows[ALWAYS]["dropped"] == "entropy_high" and rows[DEAD]["dropped"] == "dead"
    assert layer.report["enrichment"]["token"]["significant_chance"] <= 0.05


# --- bad input --------------------------------------------------------------------------------------------------------


def test_without_labels_enrichment_is_skipped_and_says_so(layer: Layer, capsys: pytest.CaptureFixture[str]):
    found = layer.run("unlabelled", labels=[None] * len(layer.source.labels))
    assert found["enrichment"] is None
    assert "enrichment is skipped: the corpus has 0 labels" in capsys.readouterr().err
    latents = open_latents(layer.folder / "unlabelled")
    assert latents.table("enrichment") is None and latents.meta["labels"] is None


def test_after_a_kill_it_goes_on_at_the_range_of_latents(layer: Layer, monkeypatch: pytest.MonkeyPatch):
    """Killed in the codes' second shard, then in the third of four ranges of latents."""
    monkeypatch.setattr(Codes, "ranges", lambda codes: [(j, j + LATENTS // 4) for j in range(0, LATENTS, LATENTS // 4)])
    whole = layer.run("in-one-go")
    shards = -(-layer.rows // layer.source.activations.meta["shard_rows"])
    with monkeypatch.context() as killing, pytest.raises(Killed):
        survives(killing, codes_module, "encode", 1)
        layer.run("in-pieces")
    with monkeypatch.context() as killing, pytest.raises(Killed):
        encoded = survives(killing, codes_module, "encode", 1000)
        survives(killing, look_module, "by_rules", 2)
        layer.run("in-pieces")
    assert len(encoded) == shards - 1
    survives(monkeypatch, codes_module, "encode", 0)
    ranges = survives(monkeypatch, look_module, "by_rules", 1000)
    assert layer.run("in-pieces") == whole and len(ranges) == 2
    assert everything(layer.folder / "in-pieces") == everything(layer.folder / "in-one-go")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_document_is_enough(tmp_path: Path, gpt2: Path):
    source = make_source(tmp_path / "activations", gpt2, [texts()[0][0] * 9], ["cat"])
    (tmp_path / "work").mkdir()
    found = interpret(make_sae(), source, knobs(), 0, tmp_path / "latents", tmp_path / "work")
    assert found["documents"] == 1
    latents = open_latents(tmp_path / "latents")
    table = latents.table("statistics")
    assert table is not None and table["entropy_share"].null_count == LATENTS


def test_latents_that_never_fire_leave_empty_tables(layer: Layer, tmp_path: Path):
    sae = make_sae()
    silent = replace(sae, threshold=torch.full((LATENTS,), 1e6))
    (tmp_path / "work").mkdir()
    found = interpret(silent, layer.source, layer.knobs, 0, tmp_path / "latents", tmp_path / "work")
    assert found["dead"] == found["dropped"]["dead"] == LATENTS and found["kept"] == 0
    table = open_latents(tmp_path / "latents").table("examples")
    assert table is not None and table.num_rows == 0


def test_an_sae_of_another_width_is_refused(layer: Layer):
    with pytest.raises(BadInput, match="the SAE reads vectors of width 16"):
        check(make_sae(16), layer.source.activations)


def test_a_skipped_layer_is_told(tmp_path: Path):
    (tmp_path / "meta.json").write_text('{"skipped": true}')
    with pytest.raises(BadInput, match="interpret was skipped"):
        open_latents(tmp_path)


def test_a_table_that_is_not_there_is_none(layer: Layer):
    latents: Latents = layer.latents
    assert latents.table("nothing") is None
    some = latents.table("examples", ["latent", "row"], [("latent", "=", 3)])
    assert some is not None and set(some["latent"].to_pylist()) == {3} and some.column_names == ["latent", "row"]
