"""An adversarial loss: a discriminator between the policies of teacher and student.

Goodfellow et al. 2014, eq. 1; on softmax vectors after Xu, Hsu, Huang 2018, "Training Shallow and
Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial Networks".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

UNITS = 64


class Discriminator(nn.Sequential):
    """D: policies (B, A) to logits (B, 1), positive for the teacher's."""

    def __init__(self, num_actions: int) -> None:
        super().__init__(nn.Linear(num_actions, UNITS), nn.ReLU(), nn.Linear(UNITS, 1))

    def losses(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The losses of student and discriminator; each gradient reaches its own player only."""
        fixed = {name: weight.detach() for name, weight in self.named_parameters()}
        judged = torch.func.functional_call(self, fixed, student)
        return deception_loss(judged) + discriminator_loss(self(teacher), self(student.detach()))


def discriminator_loss(of_teacher: Tensor, of_student: Tensor) -> Tensor:
    """−log D(p_T) − log(1 − D(p_S)), from the discriminator's logits (B,) or (B, 1)."""
    return functional.softplus(-of_teacher).mean() + functional.softplus(of_student).mean()


def deception_loss(of_student: Tensor) -> Tensor:
    """−log D(p_S): what the student minimises, in the form that does not saturate."""
    return functional.softplus(-of_student).mean()
