"""Estimate what each stage costs: bytes that it writes, bytes of memory, seconds.

Disk counts tensors and tables; headers and JSON are left out. Memory is anonymous memory: mapped shards do not count,
because the system drops them when it needs the room. With F = ``latents``, d = width, n = rows and k active latents in
a row:

    activations  2 n d bytes for each layer
    tokens       8 bytes for each position
    codes        8 n k bytes, and 8 F for each shard
    SAE          4 (2 F d + 3 F + d) bytes, for the best, the last and each kept one
    training     steps × the measured time + encoding of the rows that validate and count + the model on ``ce_tokens``;
                 an imported SAE (``train.from``) has no steps
    a pass       2 operations for each token and parameter, at FORWARD of a product's measured speed

Where a stage spends its time between products, the seconds are those of the default run (2 cores). They grow with the
number of latents, pairs of latents or rows, and with the ``pace`` of this machine.
"""

from dataclasses import dataclass

from apps.plan.given import with_imported_sizes
from apps.plan.model import Model
from apps.plan.rows import Rows
from apps.plan.speed import Speed
from stages.select.whole import Params
from strata.splicing import splice
from strata.training.knobs import FLOAT, Train
from strata.twins.knobs import barred

# Memory and the passes of the model.
BASE = 500e6  # bytes of Python with torch and what belongs to it
FORWARD = 0.64  # share of a product's speed that a forward pass of whole contexts reaches
SHORT = 0.3  # share that passes of a few prompts reach
BACKWARD = 4  # a gradient costs as much as so many forward passes, its own forward pass included
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Seconds until a stage has begun: one that loads the model, and one that does not.
LOADS, LIGHT = 8.0, 4.0

UNPACKED = 50e6  # fetch: bytes a second that it unpacks, copies and hashes
SENTENCE = 80  # extract: tokens of a document that a sentence model reads, about

CANDIDATES = 6  # train: reconstructions that are spliced in: SAE, mean, PCA, untrained, zero, and nothing
KEPT = 1.5  # train: memory that it keeps of what it frees, as a factor (strata/device/machine.py)
IMPORTED_SAES = 2  # train: SAEs in memory where one is imported: it and the untrained control

LOOKED, STORED = 7.1e-3, 4.0e-7  # interpret: seconds for each latent, and for each code
EXPLAINED = 3000  # explain: tokens read and written to explain one latent and to score it, about
SHOWN = 85e3  # interpret: bytes for each latent while it looks for examples

FAMILY, PAIR = 1.4e-3, 7.0e-8  # cluster: seconds for each latent, and for each pair of latents
REFIT, SOLVED = 2.6e-7, 2.5e-11  # merge: seconds for each code, and for latents³
CONDITIONS = 4  # steer_eval: latent, random latent, random direction, DiffMean

PROBED, TASK = 5.0, 6.0  # evaluate: seconds of the probes of labels, and of a task, for each pooling
META, ABSORBED = 89.0, 7.0  # evaluate: processor seconds for each seed of the meta-SAE, and of absorption
DOCUMENTS = 400  # evaluate: documents whose mean codes it holds, about
PACKAGED = {"bbc-news": (5, 2_225), "sae-probes": (113, 334_092)}  # tasks of a package, and prompts
SHORT_TASKS, ONE_TABLE = 20, 100_000  # tasks of `short`; prompts that a table is thought to have, where all are read


@dataclass(frozen=True)
class Cost:
    """What one stage costs. ``what``: the size of the work in words. ``disk``, ``memory``: bytes. None: not known."""

    stage: str
    what: str
    disk: float | None
    memory: float | None
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """What the costs of all stages follow from. A method named as a stage estimates that stage's cost."""

    params: Params
    model: Model
    rows: Rows
    speed: Speed

    def costs(self) -> list[Cost]:
        """List the costs in the pipeline's order; stages that run for each layer have one for each."""
        params, costs = self.params, [self.fetch(), self.extract()]
        if params.evaluate.run and self.counted_tasks()[0]:
            costs.append(self.tasks())
        if params.tune.run:
            costs.append(self.tune())
        costs += [self.train(layer) for layer in params.layers]
        if params.controls.run:
            costs += [self.controls(layer) for layer in params.layers if layer in params.chosen(params.controls.layers)]
        costs += [self.stability(layer) for layer in params.layers if self.again(layer)]

        if params.interpret.run:
            costs += [self.interpret(layer) for layer in params.layers]
            costs += [self.explain(layer) for layer in params.layers if self.explained(layer)]
        for name, cost in {"cluster": self.cluster, "merge": self.merge}.items():
            costs += [cost(layer) for layer in params.layers if getattr(params, name).run]
        if params.fetch.lm.kind == "language":
            for name, cost in {"invert": self.invert, "steer_eval": self.steer}.items():
                section = getattr(params, name)
                costs += [
                    cost(layer) for layer in params.layers if section.run and layer in params.chosen(section.layers)
                ]

        costs += [self.evaluate(layer) for layer in params.layers if params.evaluate.run]
        return [*costs, Cost("report, track", "", None, BASE, 12 * self.speed.pace)]

    def knobs(self, layer: int) -> Train:
        """Return the layer's section train, with the sizes of its imported SAE if it has one."""
        return with_imported_sizes(self.params.knobs(layer))

    @property
    def weights(self) -> float:
        """Bytes of the loaded model."""
        return self.model.parameters * BYTES[self.params.extract.dtype]

    def passed(self, operations: float, share: float = FORWARD) -> float:
        """Return the seconds of so many ``operations`` of the model, at a ``share`` of a product's speed."""
        return operations / (share * self.speed.product)

    def fetch(self) -> Cost:
        stored = self.model.stored if self.model.stored is not None else self.weights
        what = f"{self.model.parameters / 1e6:,.0f} M parameters, and the text"
        seconds = None  # of a download, nobody knows
        if self.model.stored is not None:
            seconds = LIGHT + stored / UNPACKED
        return Cost("fetch", what, stored, BASE + 2 * stored, seconds)

    def extract(self) -> Cost:
        rows, layers = self.rows, self.params.extracted
        last = max(layers) if self.params.extract.hook != "resid_pre" else max(layers) - 1
        operations = rows.contexts * rows.context * self.model.until(last)
        if self.params.fetch.lm.kind == "sentence":
            operations = rows.total * self.model.whole * SENTENCE
        elif self.params.fetch.lm.kind == "vectors":
            operations = 0  # the corpus brings its vectors

        layer_bytes = activation_bytes(rows.total, self.model.width, self.params.fetch.lm.kind)
        disk = layer_bytes * len(layers) + token_bytes(rows)
        what = f"{rows.total:,} rows × {len(layers)} layer{'s' * (len(layers) > 1)}"
        return Cost("extract", what, disk, BASE + self.weights, LOADS + self.passed(operations))

    def counted_tasks(self) -> tuple[int, int]:
        """Return how many tasks evaluate.tasks asks for, and how many prompts they have at the most."""
        knobs, tasks, prompts = self.params.evaluate.tasks, 0, 0
        for source in knobs.sources if self.params.fetch.lm.kind == "language" else ():
            there, most = PACKAGED.get(source.packaged or "", (1, ONE_TABLE))
            wanted = min({"short": SHORT_TASKS, "all": there}.get(str(source.tasks), len(source.tasks)), there)
            tasks, prompts = tasks + wanted, prompts + min(most, wanted * (knobs.prompts or most))
        return tasks, prompts

    def tasks(self) -> Cost:
        """Count what the prompts of evaluate.tasks cost, if each has as many tokens as it may have."""
        knobs, layers, (_, prompts) = self.params.evaluate.tasks, self.params.extracted, self.counted_tasks()
        rows = prompts * (knobs.tokens - 1 if "mean" in knobs.pooling else 1)
        disk = activation_bytes(rows, self.model.width, "language") * len(layers)
        shard = activation_bytes(self.params.extract.shard_rows, self.model.width, "language")
        memory = BASE + self.weights + shard * (len(layers) + 1)
        seconds = LOADS + self.passed(prompts * knobs.tokens * self.model.until(max(layers)))
        return Cost("extract_tasks", f"{prompts:,} prompts at most", disk, memory, seconds)

    def tune(self) -> Cost:
        tune, train = self.params.tune, self.params.train
        rows = min(tune.rows or self.rows.train, self.rows.train)
        steps = rows // train.batch_size * tune.epochs
        judged = self.rows.validation + rows // 8  # rows that each trial encodes after its steps
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
            steps, validated, kept = 0, rows.validation, 1
            memory, what = BASE + IMPORTED_SAES * one, "0 steps, it is given"

        grown = knobs.latents / self.params.train.latents  # the speed is that of the section train
        seconds = LOADS + grown * (steps * self.speed.step + (rows.total + validated + rows.test) * self.speed.encode)
        seconds += rows.train * self.model.width**2 * 2 / self.speed.product * FLOAT  # PCA
        if knobs.ce_tokens and self.params.fetch.lm.kind == "language":
            after = self.model.whole - self.model.until(layer)
            seconds += self.passed(knobs.ce_tokens * (CANDIDATES * after + self.model.until(layer)))
            memory += KEPT * self.spliced()
        return Cost(f"train@{layer}", what, one * kept + FLOAT * knobs.latents, memory, seconds)

    def controls(self, layer: int) -> Cost:
        again, knobs = self.train(layer), self.params.knobs(layer)
        twins = sum(barred(twin, knobs) is None for twin in self.params.controls.twins)
        seconds = LOADS + twins * ((again.seconds or 0.0) - LOADS)
        disk = twins * (knobs.sae_bytes(self.model.width) + FLOAT * knobs.latents)
        return Cost(f"controls@{layer}", f"{twins} × {again.what}", disk, again.memory, seconds)

    def spliced(self) -> float:
        """Return the bytes of the model, and of a chunk's logits with each reconstruction spliced in."""
        vocabulary = self.model.head / self.model.width
        return self.weights + CANDIDATES * splice.CHUNK * vocabulary * BYTES[self.params.extract.dtype]

    def training(self, knobs: Train) -> float:
        """Return the bytes of a training: the SAE's copies, the window of rows and the one that follows it."""
        return BASE + knobs.training_bytes(self.model.width, self.rows.train)

    def again(self, layer: int) -> int:
        """Return how often stability trains a layer again; not at all where the SAE is given."""
        return self.params.stability.seeds if self.knobs(layer).from_ is None else 0

    def stability(self, layer: int) -> Cost:
        section, knobs, once = self.params.stability, self.knobs(layer), self.train(layer)
        seeds, width = section.seeds, self.model.width
        seconds = seeds * (once.seconds or 0.0) + LIGHT
        disk, memory = seeds * knobs.sae_bytes(width), once.memory or 0.0
        if section.pool:
            seconds += REFIT * self.rows.total * knobs.k * self.speed.pace  # the fit; its size is not known
            memory += self.spliced()
        memory = max(memory, BASE + section.held_bytes(knobs.latents, width))
        return Cost(f"stability@{layer}", f"{seeds} × {once.what}", disk, memory, seconds)

    def interpret(self, layer: int) -> Cost:
        rows, knobs, section = self.rows, self.knobs(layer), self.params.interpret
        codes = rows.total * knobs.k
        seconds = LOADS + rows.total * self.speed.encode
        seconds += (knobs.latents * LOOKED + codes * STORED) * self.speed.pace
        memory = BASE + self.weights + SHOWN * knobs.latents

        shards = -(-rows.total // self.params.extract.shard_rows)
        disk = code_bytes(codes, knobs.latents, shards) + section.table_bytes(knobs.latents)
        return Cost(f"interpret@{layer}", f"{codes:,} codes", disk, memory, seconds)

    def explained(self, layer: int) -> bool:
        """Say whether a language model explains latents of this layer."""
        section, language = self.params.explain, self.params.fetch.lm.kind == "language"
        asked = section.model is not None and (section.model != "lm" or language)
        return asked and layer in self.params.chosen(section.layers)

    def explain(self, layer: int) -> Cost:
        section = self.params.explain
        latents = section.latents + section.drawn
        seconds = None  # of a model that is not the one that is studied, nobody knows
        if section.model == "lm":
            seconds = LOADS + self.passed(latents * EXPLAINED * (1 + len(section.scores)) * self.model.whole)
        return Cost(f"explain@{layer}", f"{latents:,} latents", None, BASE + self.weights, seconds)

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
        # A gradient step runs backward once, then each candidate forward.
        searched = greedy.starts.pool + starts * greedy.steps * (greedy.candidates + BACKWARD)
        searched += soft.starts * soft.steps * BACKWARD
        passes = 2 * searched * _many(section.latents)  # the control, random search, may use as many
        seconds = LOADS + self.passed(passes * (section.tokens + 1) * self.model.until(layer), SHORT)
        what = f"{passes:,} prompts of {section.tokens} tokens"
        return Cost(f"invert@{layer}", what, None, BASE + 1.25 * self.weights, seconds)

    def steer(self, layer: int) -> Cost:
        section, written = self.params.steer_eval, self.params.steer_eval.generate
        prompts, conditions = section.prompts + len(section.texts), _many(section.latents) * CONDITIONS
        controls = self.params.controls
        twins = controls.run and layer in self.params.chosen(controls.layers)
        tried = conditions + _many(section.latents) * len(controls.twins) * twins
        scored = tried * len(section.strengths) * prompts * section.tokens
        made = conditions * len(written.strengths) * (written.prompts + len(section.texts)) * written.tokens
        operations = scored * self.model.until(self.model.blocks - 1) + made * self.model.whole
        seconds = LOADS + self.passed(operations, SHORT)
        what = f"{scored + made:,} tokens"
        return Cost(f"steer_eval@{layer}", what, None, BASE + 1.5 * self.weights, seconds)

    def evaluate(self, layer: int) -> Cost:
        section, knobs = self.params.evaluate, self.params.knobs(layer)
        has_tasks = layer in self.params.chosen(section.tasks.layers)
        probed = PROBED + TASK * self.counted_tasks()[0] * len(section.tasks.pooling) * has_tasks
        seconds = LIGHT + (probed + META * section.meta + ABSORBED * section.absorption) * self.speed.pace
        memory = BASE + 3 * knobs.sae_bytes(self.model.width) + 8 * 2 * DOCUMENTS * knobs.latents
        return Cost(f"evaluate@{layer}", "probes", None, memory, seconds)


def _many(latents: int | list[int]) -> int:
    """Count the latents of a section, which names them or says how many."""
    return len(latents) if isinstance(latents, list) else latents


def activation_bytes(rows: int, width: int, kind: str) -> int:
    """Count the bytes of one layer's shards: float32 for vectors of the corpus, bfloat16 for rows of a model."""
    return (4 if kind == "vectors" else 2) * rows * width


def token_bytes(rows: Rows) -> int:
    """Count the bytes of the contexts: a token and a document, int32 each, for every position."""
    return 8 * rows.contexts * rows.context


def code_bytes(entries: int, latents: int, shards: int) -> int:
    """Count the bytes of sparse codes.

    Each entry has a row (int32) and a value (float32); each shard says where every latent begins (int64).
    """
    return 8 * entries + 8 * (latents + 1) * shards
