"""Statistical certificates: what a sample proves about a whole network, where no analytic bound exists.

    P( error(g, x) > tau ) <= p,        E[ bounded error(g, x) ] <= q

for a new input ``x`` and a new element ``g`` drawn as those of the sample; all numbers of a certificate hold at once
with probability ``1 - alpha`` over the sample (theory 4). A worst case over all inputs or elements is never claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import scipy.optimize
import scipy.special

from equidial.certificates._document import Document
from equidial.certificates._rounding import up
from equidial.errors import ArgumentError, explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SLACK = 1e-9  # of alpha, relative: what scipy's incomplete beta function may be wrong by, a hundred times over
_QUANTILES = 200  # of the sampled errors a document keeps this many steps, for its plot

SAMPLE_HYPOTHESES = (
    "the inputs are independent draws from the population that the certificate speaks of",
    "the elements are independent draws from the distribution named, and independent of the inputs",
    "the error, tau, alpha, n and the seed were fixed before any output was seen",
    "the model was neither trained, tuned nor calibrated on these inputs",
)
"""What no sample can check; every document repeats it."""


def check_statistics(tau: float | Sequence[float], alpha: float, n: int) -> tuple[float, ...]:
    """The thresholds in ascending order; ``ArgumentError`` unless all three have a meaning.

    ``tau``: one or more distinct finite numbers >= 0; ``alpha`` in (0, 1); ``n`` an integer >= 1.
    """
    given = (tau,) if isinstance(tau, int | float) else tau
    numbers = isinstance(given, Sequence) and not isinstance(given, str) and all(map(_is_number, given))
    if not numbers or not given or any(not math.isfinite(t) or t < 0 for t in given) or len(set(given)) < len(given):
        raise ArgumentError(explain("tau: one or more distinct finite numbers >= 0", repr(tau), "e.g. tau=0.05"))
    _check_alpha(alpha)
    _check_count("n", n, 1)
    return tuple(sorted(map(float, given)))


def clopper_pearson_upper(k: int, n: int, alpha: float) -> float:
    """The exact one-sided upper confidence bound of a probability that was seen ``k`` times in ``n`` trials.

    The root ``p`` of ``P(Binomial(n, p) <= k) = alpha``, that is ``BetaInv(1 - alpha; k + 1, n - k)``, rounded up; 1
    where ``k = n``. The true probability exceeds it with probability at most ``alpha``, whatever it is. Raises
    ``ArgumentError`` unless ``0 <= k <= n``, ``n >= 1``, ``alpha`` in (0, 1). Source: Clopper and Pearson (1934).
    """
    _check_count("n", n, 1)
    _check_count("k", k, 0)
    _check_alpha(alpha)
    if k > n:
        raise ArgumentError(explain(f"k <= n = {n}", repr(k), "count successes among the trials"))
    if k == n:
        return 1.0
    p = float(scipy.special.betainccinv(k + 1, n - k, alpha * (1 - _SLACK)))
    return _raised(p, lambda q: scipy.special.betaincc(k + 1, n - k, q) <= alpha * (1 - _SLACK / 2))


def mean_upper(mean: float, n: int, alpha: float) -> float:
    """An upper confidence bound of the expectation of a variable in [0, 1] whose mean over ``n`` draws is ``mean``.

    ``sup {q : n kl(mean, q) <= log(1 / alpha)}`` with the binary relative entropy ``kl(p, q) = p log(p / q) +
    (1 - p) log((1 - p) / (1 - q))``, rounded up; 1 where ``mean = 1``. The expectation exceeds it with probability at
    most ``alpha``. Raises ``ArgumentError`` unless ``mean`` in [0, 1], ``n >= 1``, ``alpha`` in (0, 1). Source:
    Chernoff's bound for variables in [0, 1], Hoeffding (1963), theorem 1.
    """
    _check_count("n", n, 1)
    _check_alpha(alpha)
    if not _is_number(mean) or not 0 <= mean <= 1:
        raise ArgumentError(explain("a mean in [0, 1]", repr(mean), "scale the variable"))
    # kl is computed to a few units in the last place of its two terms, which are below 1 wherever this matters
    level = -math.log(alpha) / n * (1 + 1e-12) + 1e-15
    last = math.nextafter(1.0, 0.0)
    if mean >= last or _relative_entropy(mean, last) <= level:
        return 1.0
    # the default relative tolerance, four units in the last place, is the smallest that brentq takes
    root: Any = scipy.optimize.brentq(
        lambda q: _relative_entropy(mean, q) - level, mean, last, xtol=1e-300, maxiter=2000
    )
    return _raised(float(root), lambda q: q >= 1 or _relative_entropy(mean, q) >= level)


@dataclass(frozen=True)
class StatisticalBound:
    """One certified number.

    Attributes:
        quantity: what is bounded, e.g. ``"P(relative error > 0.05)"``.
        sampled: its value on the sample: ``count / n``, or the mean.
        bound: upper confidence bound at the level ``alpha / m`` of its certificate.
        threshold: ``tau`` where the quantity is ``P(error > tau)``.
        count: how often the event happened; ``None`` for the mean of a variable in [0, 1].
    """

    quantity: str
    sampled: float
    bound: float
    threshold: float | None = None
    count: int | None = None


def bound_samples(
    errors: Sequence[float],
    *,
    error: str,
    tau: float | Sequence[float],
    alpha: float,
    events: Mapping[str, Sequence[bool]] | None = None,
    bounded: Mapping[str, Sequence[float]] | None = None,
) -> tuple[StatisticalBound, ...]:
    """Bounds of ``P(error > tau)`` for each ``tau``, of the probability of each event and of each bounded mean.

    ``errors``, and each value of ``events`` (booleans) and ``bounded`` (numbers in [0, 1]), hold one entry per draw.
    Each of the ``m`` bounds has level ``alpha / m``, so that all hold at once with probability ``1 - alpha``
    (Bonferroni). Raises ``ArgumentError`` for lists of different lengths, NaN, or a bounded variable outside [0, 1].
    """
    events, bounded, n = events or {}, bounded or {}, len(errors)
    thresholds = check_statistics(tau, alpha, n)
    lengths = {len(values) for values in (*events.values(), *bounded.values())} | {n}
    if len(lengths) > 1 or any(math.isnan(e) or e < 0 for e in errors):
        got = f"lists of {sorted(lengths)}" if len(lengths) > 1 else "NaN or a negative number"
        raise ArgumentError(explain("one error >= 0 and one value of everything else per draw", got, "check them"))
    each = alpha / (len(thresholds) + len(events) + len(bounded))
    rows = []
    for t in thresholds:
        k = sum(e > t for e in errors)
        rows.append(
            StatisticalBound(
                f"P({error} error > {t:g})", k / n, clopper_pearson_upper(k, n, each), threshold=t, count=k
            )
        )
    for name, values in bounded.items():
        if not all(0 <= v <= 1 for v in values):
            raise ArgumentError(explain(f"{name} in [0, 1]", f"{min(values)}..{max(values)}", "scale it"))
        mean = math.fsum(values) / n
        rows.append(StatisticalBound(name, mean, mean_upper(min(up(mean), 1.0), n, each)))
    for name, happened in events.items():
        k = sum(map(bool, happened))
        rows.append(StatisticalBound(name, k / n, clopper_pearson_upper(k, n, each), count=k))
    return tuple(rows)


def sample_quantiles(errors: Sequence[float]) -> tuple[float, ...]:
    """The sampled errors in ascending order, thinned to at most 201 equally spaced ranks, ends included."""
    ordered = sorted(errors)
    steps = min(len(ordered) - 1, _QUANTILES)
    return tuple(ordered[_rank(i, steps, len(ordered))] for i in range(steps + 1))


@dataclass(frozen=True)
class StatisticalCertificate(Document):
    """What a sample of ``n`` inputs with one random element each proves about a network.

    With probability at least ``1 - alpha`` over the draw of inputs and elements, every row's ``bound`` holds. It has
    no ``layers`` and no worst case: ``worst`` was sampled and bounds nothing.

    Attributes:
        rows: the certified numbers.
        n, alpha, seed: size of the sample, joint level, seed of the elements; fixed before looking.
        error: law of the error that ``tau`` is compared with, in words.
        group, radius: the group, and the largest distance of the elements drawn.
        elements: their distribution, in words.
        dtype: of the outputs; the certificate speaks of the network as computed.
        worst: the largest error in the sample.
        quantiles: the sampled errors, thinned (:func:`sample_quantiles`).
        hypotheses: what must be true and cannot be checked here.
        library: version of equidial.
    """

    KIND: ClassVar[str] = "statistical certificate"

    rows: tuple[StatisticalBound, ...]
    n: int
    alpha: float
    seed: int
    error: str
    group: str
    radius: float
    elements: str
    dtype: str
    worst: float
    quantiles: tuple[float, ...]
    hypotheses: tuple[str, ...] = SAMPLE_HYPOTHESES
    library: str = ""

    def __post_init__(self) -> None:
        check_statistics(self.thresholds, self.alpha, self.n)
        for row in self.rows:
            if row.threshold is not None and (row.count is None or (row.count > 0) != (self.worst > row.threshold)):
                got = f"{row!r} with worst={self.worst!r}"
                raise ArgumentError(explain("counts that fit the largest error", got, "certify the model again"))
            if row.count is not None:
                least, sampled = clopper_pearson_upper(row.count, self.n, self.alpha_each), row.count / self.n
            else:
                least, sampled = mean_upper(row.sampled, self.n, self.alpha_each), row.sampled
            # another version of scipy may differ in the last digits; a bound that the sample does not give is refused
            if row.sampled != sampled or not least * (1 - 1e-6) <= row.bound <= 1:
                raise ArgumentError(
                    explain(f"{row.quantity} <= {least:.6g}, as the sample gives", repr(row), "certify the model again")
                )

    @property
    def kind(self) -> str:
        """``"statistical"``: true with a confidence, never mixed with ``"exact"`` and ``"upper"``."""
        return "statistical"

    @property
    def level(self) -> str:
        """``"network"``."""
        return "network"

    @property
    def alpha_each(self) -> float:
        """``alpha / m`` for ``m`` rows (Bonferroni)."""
        return self.alpha / len(self.rows)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The values of ``tau``, ascending."""
        return tuple(row.threshold for row in self.rows if row.threshold is not None)

    @property
    def value(self) -> float:
        """The share of the sample whose error exceeds the smallest ``tau``."""
        return self.rows[0].sampled

    @property
    def bound(self) -> float:
        """The certified upper bound of ``P(error > tau)`` at the smallest ``tau``."""
        return self.rows[0].bound

    def __iter__(self) -> Iterator[StatisticalBound]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: float | str) -> StatisticalBound:
        """The row of this threshold or quantity; raises ``KeyError``."""
        for row in self.rows:
            if key in (row.quantity, row.threshold):
                return row
        raise KeyError(key)

    def _fields(self) -> dict[str, Any]:
        data = asdict(self) | {"kind": self.kind, "level": self.level, "alpha_each": self.alpha_each}
        data |= {"rows": [asdict(row) for row in self.rows], "hypotheses": list(self.hypotheses)}
        # an error is infinite where F(x) = 0; JSON has no infinity
        return data | {"worst": _text(self.worst), "quantiles": [_text(q) for q in self.quantiles]}

    @classmethod
    def _from_fields(cls, data: dict[str, Any]) -> StatisticalCertificate:
        known = {name: data[name] for name in (f.name for f in fields(cls))}
        known |= {
            "rows": tuple(StatisticalBound(**row) for row in data["rows"]),
            "worst": float(data["worst"]),
            "quantiles": tuple(map(float, data["quantiles"])),
            "hypotheses": tuple(data["hypotheses"]),
        }
        return cls(**known)

    def _shares(self) -> list[float]:
        """The share of the sample beyond each of the quantiles."""
        steps = len(self.quantiles) - 1
        return [1 - (1 + _rank(i, steps, self.n)) / self.n for i in range(steps + 1)]

    def plot(self) -> Figure:
        """Share of the sample beyond each error, and the certified points above it; needs matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        finite = [(e, share) for e, share in zip(self.quantiles, self._shares(), strict=True) if math.isfinite(e)]
        reach = 1.05 * max([*self.thresholds, *(e for e, _ in finite)]) or 1.0
        rest = finite[-1][1] if finite else 1.0
        curve = ((0.0, 1.0), *finite, (reach, rest))
        axes.step(*zip(*curve, strict=True), where="post", color="#08519c", label="share of the sample", clip_on=False)
        for row in self.rows:
            if row.threshold is not None:
                axes.plot([row.threshold] * 2, [row.sampled, row.bound], color="#b23a48", linewidth=1.5)
        bounds = [row.bound for row in self.rows if row.threshold is not None]
        axes.plot(self.thresholds, bounds, "v", color="#b23a48", label="certified: P(error > τ) is at most this")
        axes.set_xlim(0, reach)
        axes.set_ylim(-0.02, 1.03)
        axes.set_xlabel(f"error, or threshold τ: {self.error}", wrap=True)
        axes.set_ylabel("P(error > τ)")
        figure.suptitle(f"{self.group}, {self.n} inputs: joint confidence {1 - self.alpha:g}", fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
        return figure

    def __str__(self) -> str:
        lines = [
            f"statistical certificate of a network under {self.group}: {self.n} inputs, one random element each; "
            f"joint confidence {1 - self.alpha:g} of all bounds",
            f"{'quantity':<44} {'sampled':>10} {'at most':>10}",
        ]
        lines += [f"{row.quantity:<44} {row.sampled:>10.4g} {_ceiling(row.bound):>10}" for row in self.rows]
        lines += [
            f"largest error in the sample: {self.worst:.4g} (sampled, bounds nothing)",
            f"error: {self.error} ({self.dtype})",
            f"elements: {self.elements}; seed {self.seed}",
            *(f"assumes: {hypothesis}" for hypothesis in self.hypotheses),
        ]
        return "\n".join(lines)


def _rank(i: int, steps: int, n: int) -> int:
    """The rank among ``n`` of step ``i`` out of ``steps``, equally spaced from 0 to ``n - 1``."""
    return round(i * (n - 1) / max(steps, 1))


def _relative_entropy(p: float, q: float) -> float:
    """``kl(p, q)`` for ``0 <= p < 1``, ``p <= q < 1``, accurate near ``q = p``, where it is second order."""
    d = q - p
    log_q = math.log1p(d / p) if d < p else math.log(q) - math.log(p) if p else 0.0
    rest = math.log1p(-d / (1 - p)) if 2 * d < 1 - p else math.log((1 - q) / (1 - p))
    return -p * log_q - (1 - p) * rest


def _raised(p: float, holds: Any) -> float:
    """The first number from ``p`` upwards, in steps that double, for which a bound holds; at most 1."""
    step = 2.0**-52
    while p < 1 and not holds(p):
        p, step = min(p * (1 + step), 1.0), 2 * step
    return min(up(p), 1.0)


def _ceiling(bound: float) -> str:
    """Four decimals, never below the number."""
    return f"{math.ceil(bound * 1e4) / 1e4:.4f}"


def _text(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_alpha(alpha: float) -> None:
    if not _is_number(alpha) or not 0 < alpha < 1:
        raise ArgumentError(explain("alpha in (0, 1)", repr(alpha), "e.g. alpha=0.01 for a confidence of 99 %"))


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(explain(f"an integer {name} >= {least}", repr(value), f"e.g. {name}=1000"))
