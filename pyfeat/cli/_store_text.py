"""What a person reads of a repair, and of rows computed again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyfeat.jobs import Recomputed
    from pyfeat.store import Loss, Repair

MAX_LISTED = 20


def repair_text(r: Repair) -> str:
    """Return what was damaged, where it is now, and what is lost."""
    lines = [f"damaged: {d.path}, byte {d.offset}: {d.reason}" for d in r.found[:MAX_LISTED]]
    lines += _more(len(r.found))
    lines += [f"set aside: {path}" for path in r.aside]
    lines += [_loss_text(loss) for loss in r.lost[:MAX_LISTED]]
    lines += _more(len(r.lost))
    kept = "nothing is lost" if not r.lost else f"{len(r.lost):,} rows or lines are lost"
    return "\n".join([*lines, f"{kept}; run the job again to compute what is missing"])


def _loss_text(loss: Loss) -> str:
    key = "" if loss.key is None else f", key {loss.key}"
    names = f" ({', '.join(loss.names)})" if loss.names else ""
    return f"lost: {loss.path}, byte {loss.offset}{key}{names}: {loss.reason}"


def recomputed_text(r: Recomputed) -> str:
    """Return how rows computed again compare with those of the store."""
    head = f"space {r.space[:12]} ({r.backbone or 'unnamed'})"
    if r.reason is not None:
        return f"{head}: cannot be computed again: {r.reason}"
    every = [*([r.golden] if r.golden is not None else []), *r.compared]
    golden = "golden row" if r.golden is not None else "no golden row"
    lines = [
        f"{head}: {len(r.compared):,} rows and {golden} computed again; of those picked "
        f"{r.gone:,} are gone, {r.changed:,} have changed, {r.unreadable:,} cannot be read"
    ]
    if every:
        lines.append(
            f"smallest cosine {min(c.cosine for c in every):.8f}, largest difference "
            f"{max(c.difference for c in every):.3g}, {len(r.beyond):,} beyond rounding"
        )
    lines += [
        f"differs: {c.name}: distance {c.distance:.3g}, rounding explains {c.tolerance:.3g}"
        for c in r.beyond[:MAX_LISTED]
    ]
    return "\n".join([*lines, *_more(len(r.beyond))])


def _more(n: int) -> list[str]:
    return [f"... and {n - MAX_LISTED:,} more (--json lists all)"] if n > MAX_LISTED else []
