"""Muon: momentum whose matrix is made orthogonal before each step (Jordan et al. 2024,
kellerjordan.github.io/posts/muon).

PyTorch ships one too, but it iterates in bfloat16, which a CPU without bfloat16 units multiplies ten times
slower than float32; there it took longer than the whole forward and backward pass of this small model.
"""

import torch

# Quintic Newton-Schulz coefficients: five rounds bring every singular value to about 1.
ROUNDS, A, B, C = 5, 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """For matrices only. Its steps are as large as an Adam step, so one learning rate serves both."""

    def __init__(self, params, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for params in _same_shape(group["params"]):  # one batched product instead of many small ones
                gradient = torch.stack([p.grad for p in params])
                state = self.state[params[0]]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                state["momentum"].lerp_(gradient, 1 - group["momentum"])
                update = orthogonalize(gradient.lerp(state["momentum"], group["momentum"]))
                size = 0.2 * max(update.shape[1:]) ** 0.5
                for p, u in zip(params, update, strict=True):
                    p.add_(u, alpha=-group["lr"] * size)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """[n, rows, columns] -> the same with singular values near 1."""
    wide = matrices.shape[1] > matrices.shape[2]
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x if wide else x.mT
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return x if wide else x.mT


def _same_shape(params: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    groups: dict[torch.Size, list[torch.Tensor]] = {}
    for p in params:
        groups.setdefault(p.shape, []).append(p)
    return list(groups.values())
