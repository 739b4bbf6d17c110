"""Calibration factor h of each response, from density ratios (arXiv 2504.05831). Pure float64 numpy.

Legend: N responses, S synthetic sources (one classifier head each), n = S + 1 sources with the golden one, m_0 = α and
m_i = β_i mixture shares with Σm = 1, c_i = P(golden | x, y) on golden ∪ source i, γ_i = N_i/N_golden of the training set of
head i, w_i = γ_i·c_i/(1 − c_i) ≈ p_golden/Q_i.

The golden source has no head: a classifier of golden against golden is at chance, so c_0 = ½, γ_0 = 1, w_0 = 1 exactly.

*Given the prompt.* DoRA's P and Q_i are distributions of y given x. c estimated from (x, y) has odds w(x, y)/γ with w(x, y) = w(y|x)·w(x);
:func:`given_prompt` divides the second factor out. Where sources answer different prompts, their shares among the responses to a
prompt differ too, m_i(x) ∝ m_i/w_i(x) (:func:`prompt_shares`), and P(y|x) = Σ_i m_i(x)·Q_i(y|x): E_P[h | x] = 1 for every prompt, so h
weights responses and not prompts. With both, mixture h(y|x) = h(x, y)/h(x).

Order of operations (:func:`calibrate`): form → normalise to mean 1 → cap at a quantile → temper h^τ → normalise again. The
cap is a quantile, so it does not depend on the first scale; the second normalisation gives the returned h mean 1.

Left out: smoothing over a source's neighbours and any learned h. One ratio per head is the only input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dora_core.config.method import CalibrationConfig
from dora_core.errors import ConfigError, did_you_mean

Floats = NDArray[np.float64]
FORMS = ("mixture", "paper", "released")
LOGIT_LIMIT = 30.0  # c stays 1e-13 away from 0 and 1: w is finite and 1 − c keeps its digits in float64
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def probabilities(logits_NS: NDArray[np.floating]) -> Floats:
    """c = σ(logit) in (0, 1), shape (N, S). Logits are clipped to ±30, infinite ones included; NaN stays NaN."""
    c_NS: Floats = 1.0 / (1.0 + np.exp(-np.clip(np.asarray(logits_NS, dtype=np.float64), -LOGIT_LIMIT, LOGIT_LIMIT)))
    return c_NS


def density_ratios(c_NS: Floats, gamma_S: Floats) -> Floats:
    """w_i = γ_i·c_i/(1 − c_i) ≈ p_golden(x, y)/Q_i(x, y), shape (N, S), ≥ 0."""
    return gamma_S * c_NS / (1.0 - c_NS)


def given_prompt(logits_NS: Floats, prompt_NS: Floats) -> Floats:
    """Logits of the response given the prompt: logit c(x, y) − log w(x), with log w(x) = logit c(x) − log(N_golden/N_i)."""
    return logits_NS - prompt_NS


def prompt_shares(shares: Floats, prompt_NC: Floats) -> Floats:
    """Shares of the sources among the responses to each prompt, m_i(x) = m_i·e^(−r_i)/Σ_j m_j·e^(−r_j), shape (N, S + 1).

    Args:
        shares: (S + 1,) of the mixture, golden first; the golden one may be 0.
        prompt_NC: (N, S + 1) r = log p_golden(x)/q_i(x) of the prompt, column 0 of the mixture's golden responses.
    """
    peak_N1 = np.where(shares > 0, -prompt_NC, -np.inf).max(axis=1, keepdims=True)
    weight_NC = shares * np.exp(np.minimum(-prompt_NC - peak_N1, 0.0))
    shares_NC: Floats = weight_NC / weight_NC.sum(axis=1, keepdims=True)
    return shares_NC


def mixture_factor(w_NS: Floats, shares: Floats) -> Floats:
    """h = 1/(α + Σ_i m_i/w_i): p_golden/P when the ratios are exact, at most 1/α. Shape (N,); golden first in ``shares``, (S + 1,) or
    (N, S + 1)."""
    h_N: Floats = 1.0 / (shares[..., 0] + (shares[..., 1:] / w_NS).sum(axis=1))
    return h_N


def paper_factor(c_NS: Floats, gamma_S: Floats, shares: Floats) -> Floats:
    """h = (1/n) Σ_i γ_i·c_i/(m_i·(1 − c_i + 1/n)) over all n sources, golden with c_0 = ½ and γ_0 = 1 (arXiv 2504.05831). Shape (N,)."""
    n = len(shares)
    golden = 0.5 / (shares[0] * (0.5 + 1.0 / n))
    h_N: Floats = (golden + (gamma_S * c_NS / (shares[1:] * (1.0 - c_NS + 1.0 / n))).sum(axis=1)) / n
    return h_N


def released_factor(c_NS: Floats, shares: Floats, source_N: NDArray[np.integer]) -> Floats:
    """h = 1/(α + m_s·(1 − c_s)/c_s), s the response's own source, without γ, as the authors' code computes. Shape (N,).

    ``source_N`` holds 0 for golden and i for head i. A golden response has (1 − c_0)/c_0 = 1, hence h = 1/(2α).
    """
    c_own = np.column_stack([np.full(len(c_NS), 0.5), c_NS])[np.arange(len(c_NS)), source_N]
    h_N: Floats = 1.0 / (shares[0] + shares[source_N] * (1.0 - c_own) / c_own)
    return h_N


def factor(
    form: str, c_NS: Floats, gamma_S: Floats, shares: Floats, source_N: NDArray[np.integer], prompt_NC: Floats | None = None
) -> Floats:
    """Compute the raw h by one of :data:`FORMS`, shape (N,).

    With ``prompt_NC`` of :func:`prompt_shares`, form ``mixture`` has the shares of each prompt; the other two are defined by the mixture's.
    """
    if form == "mixture":
        return mixture_factor(density_ratios(c_NS, gamma_S), shares if prompt_NC is None else prompt_shares(shares, prompt_NC))
    if form == "paper":
        return paper_factor(c_NS, gamma_S, shares)
    return released_factor(c_NS, shares, source_N)


def mixture_shares(counts: Mapping[str, int], given: Mapping[str, float] | None, golden: Sequence[str], heads: Sequence[str]) -> Floats:
    """Return mixture shares (S + 1,), golden first: ``given`` by source name, else proportional to the counts of responses.

    Several golden sources are pooled into one Q_0: α is the sum of their shares.

    Raises:
        ConfigError: the sources of ``given`` are not those of the data.
    """
    names = set(golden) | set(heads)
    if given is None:
        values: Mapping[str, float] = {name: counts[name] / sum(counts[k] for k in names) for name in names}
    else:
        if unknown := sorted(set(given) - names):
            raise ConfigError(
                f"calibration.shares names {unknown[0]!r}, which is not a source of the data", hint=did_you_mean(unknown[0], names)
            )
        if missing := sorted(names - set(given)):
            raise ConfigError(
                f"calibration.shares has no share for {', '.join(missing)}",
                hint="give every source of the data a share, or null for shares by count",
            )
        values = given
    return np.array([sum(values[name] for name in golden), *(values[name] for name in heads)], dtype=np.float64)


def effective_sample_size(h: Floats) -> float:
    """(Σh)²/(N·Σh²), in (0, 1]; invariant to the scale of h."""
    return float(h.sum() ** 2 / (len(h) * np.square(h).sum()))


def temper_for_floor(h: Floats, floor: float) -> float:
    """Find the largest τ in [0, 1] whose h^τ has an effective sample size of at least ``floor``, by bisection to 1e-6.

    The effective sample size falls monotonically in τ: d/dτ log ESS = 2(E_τ[log h] − E_2τ[log h]) ≤ 0, with E_τ weighting by h^τ.
    """
    if effective_sample_size(h) >= floor:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if effective_sample_size(h**middle) >= floor else (low, middle)
    return low


@dataclass(frozen=True)
class Calibrated:
    """Factors h (N,) of the objective, after the transformations recorded beside them; ``ess`` is that of this h."""

    h: Floats
    tau: float
    ess: float
    capped_fraction: float


def calibrate(raw_h: Floats, config: CalibrationConfig) -> Calibrated:
    """Normalise, cap, temper (in that order; see the module docstring) one raw factor of shape (N,), all > 0.

    ``capped_fraction`` is the share of responses that the cap lowered.
    """
    h = raw_h / raw_h.mean() if config.normalize else raw_h
    cap = np.inf if config.cap_quantile is None else float(np.quantile(h, config.cap_quantile))
    capped = h > cap
    h = np.minimum(h, cap)
    tau = temper_for_floor(h, config.ess_floor) if config.temper == "auto" else config.temper
    h = h**tau
    if config.normalize:
        h = h / h.mean()
    return Calibrated(h, tau, effective_sample_size(h), float(capped.mean()))


def quantiles(values: Floats) -> dict[str, float]:
    """Return ``{"0.05": …, …, "0.95": …}`` of a non-empty sample."""
    return {str(q): float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


def aggregate(
    h: Floats,
    record_index: NDArray[np.integer],
    mode: Literal["mean", "min", "chosen", "product"],
    chosen: NDArray[np.bool_] | None = None,
) -> Floats:
    """Aggregate the factors of responses to one factor per record.

    Args:
        h: (N,) factors of responses.
        record_index: (N,) record of each response, 0 … R−1, each at least once.
        mode: ``chosen`` takes the response with the highest reward.
        chosen: (N,) bool, exactly one ``True`` per record; only read in mode ``chosen``.

    Returns:
        (R,) factors. ``product`` is not renormalised: its scale grows with the number of responses.
    """
    records = int(record_index.max()) + 1 if len(record_index) else 0
    if mode == "mean":
        return np.bincount(record_index, weights=h, minlength=records) / np.bincount(record_index, minlength=records)
    if mode == "min":
        out = np.full(records, np.inf)
        np.minimum.at(out, record_index, h)
        return out
    if mode == "product":
        out = np.ones(records)
        np.multiply.at(out, record_index, h)
        return out
    assert chosen is not None and np.array_equal(np.bincount(record_index[chosen], minlength=records), np.ones(records)), (
        "one chosen response per record"
    )
    out = np.empty(records)
    out[record_index[chosen]] = h[chosen]
    return out
