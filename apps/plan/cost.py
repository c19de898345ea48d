"""What each stage costs: bytes that it writes, bytes that it holds, seconds.

Disk is that of the tensors and tables; headers and JSON are left out. Memory is anonymous: mapped shards, which the
system drops when it wants to, do not count. With B = ``batch_size``, F = ``latents``, d = width, n = rows and k active
latents a row:

    activations  2 n d a layer        tokens  8 a position        codes  8 n k + 8 F a shard
    SAE          4 (2 F d + 3 F + d), and the last one and kept ones beside the best
    training     steps of the measured time + encoding of what validates and counts + the model on ``ce_tokens``;
                 no steps where the SAE is given (``train.from``)
    a pass       2 operations a token and parameter, at FORWARD of a product's measured speed

Where a stage spends its time between products, the seconds are those of the default run (2 cores), by the latents,
pairs of latents or rows that it has, times the ``pace`` of this machine.
"""

from dataclasses import dataclass

from apps.plan.given import described
from apps.plan.model import Model
from apps.plan.rows import Rows
from apps.plan.speed import Speed
from stages.select.whole import Params
from strata.splicing import splice
from strata.training.knobs import FLOAT, Train

BASE = 500e6  # bytes of Python with torch and what belongs to it
FORWARD = 0.64  # of a product's speed: what a forward pass of whole contexts reaches,
SHORT = 0.3  # and passes of a few prompts
LOADS, LIGHT = 8.0, 4.0  # seconds until a stage with the model has begun, and one without
UNPACKED = 50e6  # bytes a second that fetch unpacks, copies and hashes
CANDIDATES = 6  # what is spliced in: SAE, mean, PCA, untrained, zero, and nothing
LOOKED = 7.1e-3  # interpret: seconds a latent,
STORED = 4.0e-7  # and a code
EXPLAINED = 3000  # tokens read and written to explain a latent and to score it, about
FAMILY, PAIR = 1.4e-3, 7.0e-8  # cluster: seconds a latent, and a pair
REFIT, SOLVED = 2.6e-7, 2.5e-11  # merge: seconds a code, and a latent cubed
SENTENCE = 80  # tokens of a document that a sentence model reads, about
PROBED = 5.0  # evaluate: seconds beside its start,
META, ABSORBED = 89.0, 7.0  # and processor time of a seed of these two
CONDITIONS = 4  # latent, random latent, random direction, DiffMean
DOCUMENTS = 400  # whose mean codes evaluate holds, about
BACKWARD = 4  # forward passes that a gradient costs, with its own forward pass
KEPT = 1.5  # train keeps what it frees (strata/device/machine.py)
SHOWN = 85e3  # bytes of a latent while interpret looks for its examples
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
GIVEN = 2  # of one that is given: it and the untrained


@dataclass(frozen=True)
class Cost:
    """``what``: the size of the work in words. ``disk`` and ``memory`` in bytes; None: not known."""

    stage: str
    what: str
    disk: float | None
    memory: float | None
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What the costs of all stages follow from."""

    params: Params
    model: Model
    rows: Rows
    speed: Speed

    def costs(self) -> list[Cost]:
        """Stage by stage in the pipeline's order; of per-layer stages each layer."""
        params, found = self.params, [self.fetch(), self.extract()]
        if params.tune.run:
            found.append(self.tune())
        found += [self.train(layer) for layer in params.layers]
        stages = {"interpret": self.interpret, "cluster": self.cluster, "merge": self.merge}
        for name, cost in stages.items():
            found += [cost(layer) for layer in params.layers if getattr(params, name).run]
        if params.fetch.lm.kind == "language":
            for name, cost in {"invert": self.invert, "steer_eval": self.steer}.items():
                section = getattr(params, name)
                found += [
                    cost(layer) for layer in params.layers if section.run and layer in params.chosen(section.layers)
                ]
        found += [self.evaluate(layer) for layer in params.layers if params.evaluate.run]
        return [*found, Cost("report, track", "", None, BASE, 12 * self.speed.pace)]

    def knobs(self, layer: int) -> Train:
        """The layer's section train, or what describes the SAE that is given."""
        return described(self.params.knobs(layer))

    @property
    def weights(self) -> float:
        """Bytes of the loaded model."""
        return self.model.parameters * BYTES[self.params.extract.dtype]

    def passed(self, operations: float, share: float = FORWARD) -> float:
        return operations / (share * self.speed.product)

    def fetch(self) -> Cost:
        stored = self.model.stored if self.model.stored is not None else self.weights
        there = self.model.stored is not None
        what = f"{self.model.parameters / 1e6:,.0f} M parameters, and the text"
        return Cost("fetch", what, stored, BASE + 2 * stored, LIGHT + stored / UNPACKED if there else None)

    def extract(self) -> Cost:
        rows, layers = self.rows, self.params.extracted
        last = max(layers) if self.params.extract.hook != "resid_pre" else max(layers) - 1
        operations = rows.contexts * rows.context * self.model.until(last)
        if self.params.fetch.lm.kind == "sentence":
            operations = rows.total * self.model.whole * SENTENCE
        elif self.params.fetch.lm.kind == "vectors":
            operations = 0
        disk = activation_bytes(rows.total, self.model.width, self.params.fetch.lm.kind) * len(layers) + token_bytes(
            rows
        )
        what = f"{rows.total:,} rows × {len(layers)} layer{'s' * (len(layers) > 1)}"
        return Cost("extract", what, disk, BASE + self.weights, LOADS + self.passed(operations))

    def tune(self) -> Cost:
        tune, train = self.params.tune, self.params.train
        rows = min(tune.rows or self.rows.train, self.rows.train)
        steps = rows // train.batch_size * tune.epochs
        judged = self.rows.validation + rows // 8
        seconds = LIGHT + tune.calls * (steps * self.speed.step + judged * self.speed.encode)
        return Cost("tune", f"{tune.calls} × {steps:,} steps", 0, self.training(train), seconds)

    def train(self, layer: int) -> Cost:
        rows, knobs = self.rows, self.knobs(layer)
        one = knobs.sae_bytes(self.model.width)
        if knobs.from_ is None:
            steps = rows.train // knobs.batch_size * knobs.epochs
            validated = knobs.epochs * 3 * min(knobs.validation_rows, rows.validation) + 3 * rows.validation
            kept = 2 + ((knobs.epochs - 1) // knobs.keep_every if knobs.keep_every else 0)  # the best and the last, too
            memory, what = self.training(knobs), f"{steps:,} steps of {knobs.batch_size}"
        else:
            steps, validated, kept, memory, what = 0, rows.validation, 1, BASE + GIVEN * one, "0 steps, it is given"
        grown = knobs.latents / self.params.train.latents  # the speed is that of the section train
        seconds = LOADS + grown * (steps * self.speed.step + (rows.total + validated + rows.test) * self.speed.encode)
        seconds += rows.train * self.model.width**2 * 2 / self.speed.product * FLOAT  # PCA
        if knobs.ce_tokens and self.params.fetch.lm.kind == "language":
            after = self.model.whole - self.model.until(layer)
            seconds += self.passed(knobs.ce_tokens * (CANDIDATES * after + self.model.until(layer)))
            memory += KEPT * self.spliced()
        return Cost(f"train@{layer}", what, one * kept + FLOAT * knobs.latents, memory, seconds)

    def spliced(self) -> float:
        """Bytes of the model and of the logits of what is spliced in, a chunk of tokens at a time."""
        vocabulary = self.model.head / self.model.width
        return self.weights + CANDIDATES * splice.CHUNK * vocabulary * BYTES[self.params.extract.dtype]

    def training(self, knobs: Train) -> float:
        """Bytes of a training: the SAE's copies, the window of rows and the one that follows it."""
        return BASE + knobs.training_bytes(self.model.width, self.rows.train)

    def interpret(self, layer: int) -> Cost:
        rows, knobs, section = self.rows, self.knobs(layer), self.params.interpret
        codes = rows.total * knobs.k
        seconds = LOADS + rows.total * self.speed.encode
        seconds += (knobs.latents * LOOKED + codes * STORED) * self.speed.pace
        memory = BASE + self.weights + SHOWN * knobs.latents
        explained = layer in self.params.chosen(section.explain.layers) and section.explain.model == "lm"
        if explained and self.params.fetch.lm.kind == "language":
            seconds += LOADS + self.passed(section.explain.latents * EXPLAINED * self.model.whole)
        shards = -(-rows.total // self.params.extract.shard_rows)
        disk = code_bytes(codes, knobs.latents, shards) + section.table_bytes(knobs.latents)
        return Cost(f"interpret@{layer}", f"{codes:,} codes", disk, memory, seconds)

    def cluster(self, layer: int) -> Cost:
        latents = self.knobs(layer).latents
        seconds = LIGHT + 3 + (FAMILY * latents + PAIR * latents**2) * self.speed.pace
        return Cost(
            f"cluster@{layer}",
            f"{latents:,} latents",
            600 * latents,
            BASE + self.params.cluster.held_bytes(latents),
            seconds,
        )

    def merge(self, layer: int) -> Cost:
        merge, knobs, width = self.params.merge, self.knobs(layer), self.model.width
        kept = round((merge.latents or 1) * knobs.latents)
        read = knobs.latents if merge.encoder == "parts" else kept
        disk = FLOAT * width * (read + kept)
        seconds = LOADS + (REFIT * self.rows.total * knobs.k + SOLVED * knobs.latents**3) * self.speed.pace
        memory = BASE + self.spliced() + merge.held_bytes(knobs.latents) + disk
        return Cost(f"merge@{layer}", f"{knobs.latents:,} → {kept:,} latents", disk, memory, seconds)

    def invert(self, layer: int) -> Cost:
        section, greedy, soft = self.params.invert, self.params.invert.greedy, self.params.invert.soft
        starts = greedy.starts.corpus + greedy.starts.random
        searched = greedy.starts.pool + starts * greedy.steps * (greedy.candidates + BACKWARD)
        searched += soft.starts * soft.steps * BACKWARD
        passes = 2 * searched * _many(section.latents)  # random search has as many
        seconds = LOADS + self.passed(passes * (section.tokens + 1) * self.model.until(layer), SHORT)
        what = f"{passes:,} prompts of {section.tokens} tokens"
        return Cost(f"invert@{layer}", what, None, BASE + 1.25 * self.weights, seconds)

    def steer(self, layer: int) -> Cost:
        section, written = self.params.steer_eval, self.params.steer_eval.generate
        prompts, each = section.prompts + len(section.texts), _many(section.latents) * CONDITIONS
        scored = each * len(section.strengths) * prompts * section.tokens
        made = each * len(written.strengths) * (written.prompts + len(section.texts)) * written.tokens
        operations = scored * self.model.until(self.model.blocks - 1) + made * self.model.whole
        seconds = LOADS + self.passed(operations, SHORT)
        what = f"{scored + made:,} tokens"
        return Cost(f"steer_eval@{layer}", what, None, BASE + 1.5 * self.weights, seconds)

    def evaluate(self, layer: int) -> Cost:
        section, knobs = self.params.evaluate, self.params.knobs(layer)
        seconds = LIGHT + (PROBED + META * section.meta + ABSORBED * section.absorption) * self.speed.pace
        memory, what = BASE + 3 * knobs.sae_bytes(self.model.width) + 8 * 2 * DOCUMENTS * knobs.latents, "probes"
        if section.stability:
            again = self.train(layer)
            seconds += section.stability * (again.seconds or 0.0)
            memory = max(again.memory or 0.0, memory + section.held_bytes(knobs.latents))
            what += f", {section.stability} × {again.what}"
        return Cost(f"evaluate@{layer}", what, None, memory, seconds)


def _many(latents: int | list[int]) -> int:
    return len(latents) if isinstance(latents, list) else latents


def activation_bytes(rows: int, width: int, kind: str) -> int:
    """Of one layer's shards: float32 of vectors that were given, bfloat16 of what a model makes."""
    return (4 if kind == "vectors" else 2) * rows * width


def token_bytes(rows: Rows) -> int:
    """Of a token and a document, int32, for every position."""
    return 8 * rows.contexts * rows.context


def code_bytes(entries: int, latents: int, shards: int) -> int:
    """Of the sparse codes: an int32 and a float32 each, and where every latent's begin in each shard, int64."""
    return 8 * entries + 8 * (latents + 1) * shards
