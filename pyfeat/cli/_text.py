"""What a person reads: short tables and summaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyfeat.backbones import BackboneDescription, Fidelity
    from pyfeat.jobs import ExtractSummary, FitSummary, Plan, QuickstartReport

MAX_LISTED = 20


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a plain table; numbers to the right, text to the left."""
    cells = [[_cell(v) for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [bool(rows) and isinstance(v, (int, float)) for v in (rows[0] if rows else header)]
    lines = [header, *cells]
    return "\n".join(
        "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def backbone_text(b: BackboneDescription, *, inner: bool) -> str:
    """Return what a backbone takes, gives and costs; of its layers the outer ones, or all."""
    blocks = {layer.name for layer in b.layers if layer.is_block}
    shown = [
        layer
        for layer in b.layers
        if inner or not any(layer.name.startswith(f"{block}.") for block in blocks)
    ]
    facts = [
        ("backbone", b.name),
        ("source", b.source),
        ("modality", b.modality),
        ("input", ", ".join(f"{k} {v:,}" for k, v in b.input.items())),
        ("preprocessing", ", ".join(f"{k} {v}" for k, v in b.preprocessing.items())),
        ("dim", f"{b.dim:,}"),
        ("parameters", f"{b.parameters:,}"),
        ("FLOPs", f"{b.flops:,} (of one input; a multiplication with its addition is two)"),
        ("chunk", "the whole batch" if b.chunk is None else f"{b.chunk} at a time on a CPU"),
    ]
    rows = [
        (
            layer.name,
            "" if layer.index is None else str(layer.index),
            layer.kind,
            " x ".join(map(str, layer.shape)),
            layer.parameters,
            f"{layer.flops / 1e6:,.1f}",
        )
        for layer in shown
    ]
    lines = [f"{key:<13}  {value}" for key, value in facts]
    lines += ["", table(("layer", "index", "kind", "shape", "parameters", "MFLOPs so far"), rows)]
    if hidden := len(b.layers) - len(shown):
        lines.append(f"{hidden:,} more inside of these (--all lists them)")
    return "\n".join(lines)


def extraction_text(s: ExtractSummary, *, report: bool = False) -> str:
    """Return what a job did, with what it could not read; with the report of its fidelity."""
    noun = {"image": "images", "text": "texts", "audio": "recordings"}.get(s.modality, "inputs")
    lines = [
        f"{s.total:,} {noun} in {s.seconds:.1f} s ({s.images_per_second:,.0f}/s): "
        f"{s.computed:,} computed, {s.hits:,} from the store, {s.duplicates:,} duplicate, "
        f"{s.n_quarantined:,} not read",
        f"store {s.store}, space {s.space[:12]}",
    ]
    if s.computed:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in s.shares.items())
        lines.append(f"time: {shares}")
    if s.truncated:
        lines.append(f"texts cut to what the model takes: {s.truncated:,}")
    if report and s.fidelity is not None:
        lines += ["", fidelity_text(s.fidelity), ""]
    elif s.choice is not None:
        lines.append(f"engine {s.choice}")
    lines += [f"not read: {q.path}: {q.reason}" for q in s.quarantined[:MAX_LISTED]]
    if s.n_quarantined > MAX_LISTED:
        more = s.n_quarantined - MAX_LISTED
        lines.append(f"... and {more:,} more (pyfeat store quarantine {s.store} lists all)")
    return "\n".join(lines)


def fidelity_text(f: Fidelity) -> str:
    """Return what was measured, as a table; what was taken, and why; what could not run."""
    header = ("engine", "precision", "mean cosine", "min cosine", "same neighbour", "inputs/s")
    rows = [
        (
            m.engine,
            m.precision,
            f"{m.mean_cosine:.6f}",
            f"{m.min_cosine:.6f}",
            f"{m.same_neighbour:.1%}",
            f"{m.per_second:,.1f}",
        )
        for m in f.measured
    ]
    refused = [f"not measured: {reason}" for reason in f.refused.values()]
    return "\n".join([table(header, rows), f"taken: {f.reason()}", *refused])


def plan_text(p: Plan) -> str:
    """Return what each backbone would cost, as a table, and which cannot run."""
    header = ("backbone", "engine", "precision", "inputs/s", "time", "disk", "memory", "work")
    rows = [
        (
            e.backbone,
            e.engine,
            e.precision,
            f"{e.items_per_second:,.1f}",
            duration_text(e.seconds),
            size_text(e.disk_bytes),
            size_text(e.memory_bytes)
            + (f" + {size_text(e.device_memory_bytes)} GPU" if e.device_memory_bytes else ""),
            " ".join(f"{name} {share:.0%}" for name, share in e.shares.items()),
        )
        for e in p.estimates
        if e.error is None
    ]
    lines = [
        f"{p.total:,} inputs, about {size_text(p.input_bytes)}; {p.sample:,} of them were tried"
    ]
    lines += [table(header, rows)] if rows else []
    bad = max((e.unreadable for e in p.estimates), default=0)
    lines += [f"not read: {bad:,} of the {p.sample:,} that were tried"] if bad else []
    lines += [
        f"cannot run: {e.backbone} on {e.engine} in {e.precision}: {e.error}"
        for e in p.estimates
        if e.error is not None
    ]
    return "\n".join(lines)


def size_text(n_bytes: float) -> str:
    """Return a number of bytes for people.

    Examples
    --------
    >>> size_text(1_234_567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n_bytes < 1000 or unit == "TB":
            return f"{n_bytes:.3g} {unit}" if n_bytes < 10 else f"{n_bytes:,.0f} {unit}"
        n_bytes /= 1000
    raise AssertionError


def duration_text(seconds: float) -> str:
    """Return a time for people.

    Examples
    --------
    >>> [duration_text(s) for s in (5.25, 200, 5000, 200_000)]
    ['5.2 s', '3.3 min', '1.4 h', '2.3 days']
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length or (unit == "h" and seconds >= length):
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def fit_text(s: FitSummary) -> str:
    """Return what was learned from what."""
    classes = ", ".join(f"{name} {n:,}" for name, n in list(s.classes.items())[:MAX_LISTED])
    more = f", ... ({len(s.classes)} classes)" if len(s.classes) > MAX_LISTED else ""
    lines = [f"{s.n_samples:,} images: {classes}{more}"]
    if s.unlabelled:
        lines.append(f"{s.unlabelled:,} images of the store have no label and were left out")
    if s.accuracy is not None:
        lines.append(f"accuracy {s.accuracy:.1%} in {s.folds}-fold cross-validation")
    else:
        lines.append("accuracy not measured")
    lines.append(f"model {s.model} ({s.seconds:.1f} s)")
    return "\n".join(lines)


def quickstart_text(r: QuickstartReport) -> str:
    """Return the report of the quickstart."""
    first, second = r.first, r.second
    classes = table(
        ("class", "accuracy"), [(c, f"{a:.1%}") for c, a in r.accuracy_per_class.items()]
    )
    return "\n".join(
        [
            f"images     {r.images}",
            f"features   {first.store}",
            f"model      {r.model}",
            "",
            f"first run  {first.total:,} images in {first.seconds:.1f} s "
            f"({first.images_per_second:,.0f}/s), {first.computed:,} through the backbone",
            f"second run {second.total:,} images in {second.seconds:.1f} s "
            f"({second.images_per_second:,.0f}/s), {second.computed:,} through the backbone",
            *[f"not read: {q.path}: {q.reason}" for q in first.quarantined[:MAX_LISTED]],
            "",
            f"accuracy   {r.accuracy:.1%} on {r.n_test:,} held-out images "
            f"({r.n_train:,} trained on)",
            "",
            classes,
            "",
            f"Label other images: pyfeat predict --model {r.model} IMAGE...",
        ]
    )
