"""Three arithmetics for the same computation: float64, float32, and float32 with every stored tensor rounded to float16."""

import torch


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.half().to(x.dtype)

    @staticmethod
    def backward(_, gradient):
        return gradient.half().to(gradient.dtype)


class Arithmetic:
    def __init__(self, dtype, rounds=False):
        self.dtype, self.rounds = dtype, rounds
        self.loss_scale = 1024.0 if rounds else 1.0

    def load(self, tensor):
        """An operand as it is stored. Only floats change."""
        if not tensor.is_floating_point():
            return tensor
        return tensor.half().to(self.dtype) if self.rounds else tensor.to(self.dtype)

    def store(self, x):
        """A result as it is stored; its gradient is rounded likewise."""
        return _Round.apply(x) if self.rounds else x


EXACT = Arithmetic(torch.float64)
SINGLE = Arithmetic(torch.float32)
HALF = Arithmetic(torch.float32, rounds=True)
