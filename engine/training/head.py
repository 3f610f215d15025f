"""What is learned beside the towers: the scale, a bias, the weights of a classifier.

It stands outside DeepSpeed: whole on every rank, with an AdamW of its own, and clamped after each step. So it is the same at
every ZeRO stage.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from configs.stage import Stage
from engine.models.clip import SCALARS
from engine.training.init_weights import MOMENTS, STEPS
from objectives.contract import Learned, ObjectiveSection
from objectives.learned import initial


@dataclass
class Head:
    """The tensors that an objective learns, by name, and the AdamW that steps them."""

    objective: ObjectiveSection
    width: int  # D
    specs: Mapping[str, Learned]
    parameters: dict[str, torch.Tensor]  # float32 leaves
    optimizer: torch.optim.Optimizer

    @classmethod
    def build(cls, stage: Stage, width: int, saved: Mapping[str, torch.Tensor], seed: int, device: torch.device) -> "Head":
        """A head whose scale and bias start as `saved` with the start's weights, or as the objective has them."""
        specs = initial(stage.objective, width, seed)
        parameters = {
            name: saved.get(name, spec.initial).detach().float().to(device).clone().requires_grad_()
            for name, spec in specs.items()
        }
        section = stage.optimizer
        groups = [
            {"params": [parameters[name] for name in specs if specs[name].decays == decays], "weight_decay": decay}
            for decays, decay in ((True, section.decay), (False, 0.0))
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=section.rate, betas=section.betas, eps=section.eps, fused=True)
        return cls(stage.objective, width, specs, parameters, optimizer)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def set_gradients(self, gradients: Iterable[torch.Tensor]) -> None:
        """Takes a gradient for each parameter, in their order."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient

    def step(self) -> None:
        """AdamW's step, then the bounds."""
        self.optimizer.step()
        for name, spec in self.specs.items():
            if spec.low is not None or spec.high is not None:
                self.parameters[name].data.clamp_(spec.low, spec.high)

    def renew(self, prefix: str, seed: int) -> None:
        """Draws again, by this seed, what is learned under names with this prefix; its moments are forgotten."""
        for name, spec in initial(self.objective, self.width, seed).items():
            if name.startswith(prefix):
                self.parameters[name].data.copy_(spec.initial)
                self.optimizer.state.pop(self.parameters[name], None)

    def moments(self) -> dict[str, torch.Tensor]:
        """The moments of the scale and the bias by open_clip's names, as a run that inherits them reads them."""
        out: dict[str, torch.Tensor] = {}
        for ours, theirs in SCALARS.items():
            state = self.optimizer.state.get(self.parameters[ours], {}) if ours in self.parameters else {}
            out |= {f"{theirs}/{key}": state[key].cpu() for key in MOMENTS if key in state}
        return out

    def set_moments(self, moments: Mapping[str, torch.Tensor]) -> None:
        """Takes what `moments` gave, of what is learned here too."""
        for ours, theirs in SCALARS.items():
            if ours in self.parameters and f"{theirs}/{MOMENTS[0]}" in moments:
                value = self.parameters[ours]
                state = {key: moments[f"{theirs}/{key}"].reshape(1).to(value.device).clone() for key in MOMENTS}
                self.optimizer.state[value] = {"step": moments[STEPS].clone().to(value.device), **state}

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters and moments, for a checkpoint."""
        out = {f"learned/{name}": value.detach().cpu() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            out |= {f"adam/{name}/{key}": moment.cpu() for key, moment in self.optimizer.state.get(value, {}).items()}
        return out

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes what `state` gave."""
        for name, value in self.parameters.items():
            value.data.copy_(state[f"learned/{name}"])
            prefix = f"adam/{name}/"
            moments = {key.removeprefix(prefix): moment for key, moment in state.items() if key.startswith(prefix)}
            if moments:
                self.optimizer.state[value] = {key: moment.to(value.device) for key, moment in moments.items()}
