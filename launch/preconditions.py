"""Files that the user must provide: all missing ones are named at once, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from palimpsest.data import artifact
from palimpsest.data.errors import UserError
from palimpsest.data.mixture import MAIN
from palimpsest.data.prepare import KIND, SCHEMA_VERSION, CorpusConfig, load_tokenizer
from palimpsest.data.sources.base import FILE_KINDS, files
from palimpsest.data.tokenizer import Tokenizer, TokenizerConfig, build
from palimpsest.insertion.families import registry
from palimpsest.insertion.families.files import TooFewItems
from palimpsest.insertion.placement.windows import no_room
from palimpsest.launch.experiment import Experiment
from palimpsest.pretrain import saved
from palimpsest.pretrain.huggingface import files as files_of_model
from palimpsest.pretrain.huggingface import settings as released


def unfit(experiment: Experiment) -> list[str]:
    """Error lines for settings and files that would stop the experiment later: the model against its weights and
    tokenizer, the topology, the user's own items, and the windows for all exposures.
    """
    lines = [*_of_topology(experiment)]
    if _untrained(experiment):
        lines += [*_of_shape(experiment), *_of_items(experiment), *_of_room(experiment)]
    return lines


def to_mend(experiment: Experiment) -> list[str]:
    """Error lines that a dry run shows: those of :func:`unfit`, GPUs without a process, and a prepared corpus that is
    too small.
    """
    return [*unfit(experiment), *idle(experiment), *_of_size(experiment)]


def idle(experiment: Experiment) -> list[str]:
    """Line for GPUs that the launcher asks for and no training process uses."""
    launcher = experiment.launcher
    spare = launcher.gpus - launcher.processes
    if launcher.kind != "slurm" or spare <= 0:
        return []
    return [
        f"launcher.gpus={launcher.gpus} but launcher.processes={launcher.processes}: {spare} of the GPUs of each node "
        f"would be reserved and stay idle; launcher.processes={launcher.gpus} uses them"
    ]


def _of_size(experiment: Experiment) -> list[str]:
    """Line for a single corpus that is prepared and has too few tokens; the plan refuses it by its count of windows."""
    place, train = experiment.corpus_directory, experiment.train
    if experiment.mixture.corpora or not (place / artifact.MANIFEST).is_file():
        return []
    tokens = artifact.read(place, kind=KIND, schema_version=SCHEMA_VERSION).facts["train_tokens"]
    wanted = train.steps * train.global_batch_size * train.sequence_length
    epochs = -(-wanted // max(1, tokens))
    if epochs <= experiment.mixture.epochs:
        return []
    return [
        f"the run reads {wanted:,} tokens but the corpus has {tokens:,}; lower train.steps or "
        f"train.global_batch_size, prepare more text, or read it again in another order (mixture.epochs={epochs})"
    ]


def missing(experiment: Experiment) -> list[str]:
    """Error lines for the files and directories that the settings name and that do not exist.

    Nothing is read: names on the Hugging Face hub are checked by the stage that reads them.
    """
    lines: list[str] = []
    for name, (config, directory) in experiment.corpora.items():
        if not (directory / artifact.MANIFEST).is_file():
            lines += _of_corpus(name if name == MAIN else f"mixture.corpora.{name}", config)
    lines += _of_weights(experiment)
    for setting, value in _paths(experiment):
        if not Path(value).exists():
            lines.append(f"{setting}={value} does not exist (relative paths start at {Path.cwd()})")
    return lines


def require(experiments: Iterable[Experiment]) -> None:
    """Check the experiments of a sweep, or of one run.

    Raises:
        UserError: naming everything that is missing or inconsistent.
    """
    _refuse(line for one in experiments for line in (*missing(one), *unfit(one)))


def require_fit(experiment: Experiment) -> None:
    """Check the settings and files of a stage run alone, which need not have all inputs of the later ones.

    Raises:
        UserError: naming everything that is inconsistent.
    """
    _refuse(unfit(experiment))


def _refuse(lines: Iterable[str]) -> None:
    if findings := dict.fromkeys(lines):
        raise UserError("; ".join(findings))


def _of_corpus(name: str, config: CorpusConfig) -> Iterator[str]:
    if config.source.kind in FILE_KINDS:
        for path in config.source.paths:
            try:
                files(replace(config.source, paths=(path,)))
            except UserError as error:
                yield str(error).replace("corpus.source", f"{name}.source", 1)
    tokenizer = config.tokenizer
    if name == MAIN and tokenizer.kind == "file" and not Path(tokenizer.path or "").is_file():
        yield f"{name}.tokenizer.path={tokenizer.path} does not exist (relative paths start at {Path.cwd()})"


def _of_weights(experiment: Experiment) -> Iterator[str]:
    """Error lines about a model to start from, by its small files, also for a name on the hub."""
    if experiment.model.weights and _untrained(experiment):
        try:
            files_of_model.find(experiment.model.weights, experiment.model.revision, whole=False)
        except UserError as error:
            yield str(error)


def _of_shape(experiment: Experiment) -> Iterator[str]:
    """Error lines about a model to start from that is there, but does not fit the settings."""
    model = experiment.model
    if model.weights and not [*_of_weights(experiment)]:
        corpus = experiment.corpus_directory
        vocab_size = None
        if (corpus / artifact.MANIFEST).is_file():
            vocab_size = artifact.read(corpus, kind=KIND, schema_version=SCHEMA_VERSION).facts["vocab_size"]
        yield from released.unfit(
            model, experiment.corpus.tokenizer, experiment.train.sequence_length, vocab_size
        )


def _of_topology(experiment: Experiment) -> Iterator[str]:
    """Error lines about the launcher's number of processes, which the parallelism must divide."""
    launcher = experiment.launcher
    if launcher.kind == "slurm":
        try:
            experiment.parallel.check(launcher.nodes * launcher.processes, experiment.model, experiment.train)
        except UserError as error:
            yield str(error)


def _of_items(experiment: Experiment) -> Iterator[str]:
    """Error lines about the user's own items (family ``table``): too few, unreadable, or longer than a window."""
    tokenizer = _tokenizer(experiment)
    for name, design in experiment.insertion.designs():
        prefix = f"insertion.experiments.{name}" if name else "insertion"
        for family, settings in design.families.items():
            path = settings.get("path")
            if family != "table" or not path or not Path(str(path)).exists():
                continue
            try:
                context = registry.FamilyContext(design.seed, tokenizer or build(iter([]), _BYTES), [])
                items = registry.make(family, context, sum(design.arm_sizes(family)), settings)
            except UserError as error:
                message = str(error)
                if isinstance(error, TooFewItems) and not design.named_arms:
                    message += _that_fits(error.available, len(design.arm_sizes(family)), prefix)
                yield (
                    message if message.startswith("insertion.") else f"{prefix}.families.{family}: {message}"
                )
                continue
            if tokenizer is None:
                continue
            room = experiment.train.sequence_length
            lengths = {item.id: len(tokenizer.encode(item.text)) for item in items}
            long = [item for item, length in lengths.items() if length > room]
            if long and design.preflight.too_long == "refuse":
                yield (
                    f"{prefix}.families.{family}.path={path}: {len(long)} items are longer than a window of "
                    f"train.sequence_length={room} tokens, the first {long[0]} of {lengths[long[0]]}"
                )


def _that_fits(items: int, arms: int, prefix: str) -> str:
    """The number per arm that an equal share of the items allows, or the number of items that the arms take."""
    each = items // arms
    if each < 2:
        return f" ({arms} arms take at least {2 * arms} rows)"
    return f" ({prefix}.items_per_dose={each} fits: {arms} arms take {each * arms} rows)"


def _of_room(experiment: Experiment) -> Iterator[str]:
    """Error lines about designs with more exposures than their windows can take, in a phase or in all.

    Needs no corpus. Designs whose doses are decided elsewhere (by coins, a policy, another plan, a file) are left to
    the plan.
    """
    shape = experiment.shape
    batch = shape.global_batch_size
    for name, design in experiment.insertion.designs():
        if design.coin_seed is not None or design.adaptive or design.paired_with or design.placements:
            continue
        sizes = [design.arm_sizes(family) for family in design.families]
        exposures: dict[tuple[int, int], int] = {}
        try:
            for number, (_, arm) in enumerate(design.arms):
                if arm.dose:
                    span = arm.phase.steps(shape.steps, batch * shape.sequence_length, shape.begin)
                    wanted = arm.dose * sum(size[number] for size in sizes)
                    exposures[span] = exposures.get(span, 0) + wanted
        except UserError as error:
            yield str(error)
            continue
        whole = (shape.begin, shape.steps), sum(exposures.values())
        for (first, end), wanted in (*exposures.items(), whole):
            windows = (end - first) * batch // design.window_slice.of
            if wanted > windows * design.per_window:
                yield (f"insertion.experiments.{name}: " if name else "") + no_room(
                    wanted, windows, design.per_window
                )
                break


_BYTES = TokenizerConfig(vocab_size=257)


def _tokenizer(experiment: Experiment) -> Tokenizer | None:
    """The tokenizer if it is known before the corpus is prepared, else None."""
    if (experiment.corpus_directory / artifact.MANIFEST).is_file():
        return load_tokenizer(experiment.corpus_directory)
    config = experiment.corpus.tokenizer
    if config.kind == "file" and Path(config.path or "").is_file():
        return build(iter([]), config)
    return None


def _untrained(experiment: Experiment) -> bool:
    """True before the first checkpoint; later, the files that the run started from may be deleted."""
    return not saved.finished(experiment.directory / "perturbed" / "checkpoints")


def _paths(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """Pairs of setting and path of all inputs other than the corpora; inputs of the plan only before it is made."""
    if index := experiment.corpus.index_file:
        yield "corpus.order", str(index)
    if (start := experiment.train.start_from) and _untrained(experiment):
        yield "train.start_from", start
    if (experiment.directory / "plan" / artifact.MANIFEST).is_file():
        return
    if experiment.insertion.paired_with:
        yield "insertion.paired_with", experiment.insertion.paired_with
    for name, design in experiment.insertion.designs():
        prefix = f"insertion.experiments.{name}" if name else "insertion"
        for setting, value in (
            ("placements", design.placements),
            ("likelihood_model", design.likelihood_model),
        ):
            if value and value != registry.TRAINED:
                yield f"{prefix}.{setting}", value
        for family, settings in design.families.items():
            for key, value in settings.items():
                if value and value != registry.TRAINED and (key == "path" or key.endswith("_path")):
                    yield f"{prefix}.families.{family}.{key}", str(value)
