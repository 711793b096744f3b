"""One measure of how far two results are apart."""

import torch


def relative(ours, theirs):
    """The largest relative error: of each number of a list, of a picture against its largest value.

    Where theirs is 0, ours has to be.
    """
    ours, theirs = map(_float64, (ours, theirs))
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} beside {tuple(theirs.shape)}"
    apart = (ours - theirs).abs()
    size = theirs.abs() if theirs.dim() < 3 else theirs.abs().max()
    return float(torch.where(apart == 0, 0.0, apart / size).max())


def _float64(values):
    found = (
        values if isinstance(values, torch.Tensor) else torch.tensor(values, dtype=torch.float64)
    )
    return found.detach().double().cpu()
