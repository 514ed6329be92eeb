"""What learning makes small: next-token prediction (ntp), or RePS's preference between two responses (reps).

Both are of one example, from the log-probabilities of the responses' tokens under the steered model.
"""

from __future__ import annotations

import torch


def ntp_loss(wanted: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the wanted response's tokens."""
    return -wanted.mean()


def reps_loss(wanted: torch.Tensor, unwanted: torch.Tensor, weight: float) -> torch.Tensor:
    """-log sigmoid(weight / |w| * sum log p(w) - 1 / |l| * sum log p(l))"""
    return -torch.nn.functional.logsigmoid(weight * wanted.mean() - unwanted.mean())


def reps_weight(reference_wanted: float, reference_unwanted: float, k: float) -> float:
    """The less likely the wanted response is to the unsteered model, beside the other, the more it weighs.

    The references are the sums of its log-probabilities.
    """
    return max((reference_unwanted - reference_wanted) * k, 1.0)
