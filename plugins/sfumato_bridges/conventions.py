"""Which schedulers of diffusers are supported, how each speaks, and why others are refused.

A noise schedule is its ratio r = sigma / alpha; what x is multiplied with is a convention. So each
scheduler is met in the frame that it computes in, whatever our schedule:

    preserving    alpha^2 + sigma^2 = 1      (what it calls sigmas is r, or it has alphas_cumprod)
    exploding     alpha = 1
    straight      alpha + sigma = 1          (its sigmas are that sigma)
"""

from __future__ import annotations

import math
from typing import Literal

import attrs

Frame = Literal["preserving", "exploding", "straight"]
Asks = Literal["once", "twice", "between", "first_twice"]


@attrs.frozen(kw_only=True)
class Convention:
    """How a scheduler speaks.

    Attributes:
        frame: the scale of its x.
        says: the prediction that it is given.
        asks: how often in an interval: at its start; there and at its end (not in the last one);
            there and between; or at both ends in the first one only.
        ends: the levels at which a grid may end.
        blind: whether it can start from pure noise, where alpha is 0.
        behind: of one that asks between, how far back the level of that stands in its table.
    """

    frame: Frame
    says: Literal["epsilon", "x0", "flow"] = "x0"
    asks: Asks = "once"
    ends: Literal["anywhere", "clean", "noisy"] = "anywhere"
    blind: bool = False
    behind: int = 0

    def scale(self, alpha: float, sigma: float) -> float:
        """How much larger our x is than its own."""
        match self.frame:
            case "preserving":
                return math.hypot(alpha, sigma)
            case "exploding":
                return alpha
            case "straight":
                return alpha + sigma

    def places(self, steps: int) -> list[tuple[int, int | None]]:
        """Where it asks: the interval, and the index of the time; None between two times."""
        starts: list[tuple[int, int | None]] = [(index, index) for index in range(steps)]
        if self.asks == "once" or steps == 1:
            return starts
        if self.asks == "first_twice":
            return [starts[0], (0, 1), *starts[1:]]
        between = self.asks == "between"
        second = [(index, None if between else index + 1) for index in range(steps - 1)]
        pairs = zip(starts, second, strict=False)
        return [place for pair in pairs for place in pair] + starts[-1:]


SUPPORTED = {
    "DDIMScheduler": Convention(frame="preserving", blind=True),
    "DDPMScheduler": Convention(frame="preserving", blind=True, ends="clean"),
    "DEISMultistepScheduler": Convention(frame="preserving", ends="noisy"),
    "DPMSolverMultistepScheduler": Convention(frame="preserving"),
    "DPMSolverSinglestepScheduler": Convention(frame="preserving"),
    "EulerAncestralDiscreteScheduler": Convention(frame="exploding", says="epsilon"),
    "EulerDiscreteScheduler": Convention(frame="exploding", says="epsilon"),
    "FlowMatchEulerDiscreteScheduler": Convention(frame="straight", says="flow", blind=True),
    "FlowMatchHeunDiscreteScheduler": Convention(
        frame="straight", says="flow", asks="twice", ends="clean", blind=True
    ),
    "HeunDiscreteScheduler": Convention(frame="exploding", asks="twice", ends="clean"),
    "KDPM2AncestralDiscreteScheduler": Convention(
        frame="exploding", says="epsilon", asks="between", ends="clean", behind=1
    ),
    "KDPM2DiscreteScheduler": Convention(
        frame="exploding", says="epsilon", asks="between", ends="clean"
    ),
    "LMSDiscreteScheduler": Convention(frame="exploding"),
    "PNDMScheduler": Convention(frame="preserving", says="epsilon", asks="first_twice"),
    "UniPCMultistepScheduler": Convention(frame="preserving"),
}

_OWN_TABLE = "its steps need the table of training, not the levels of a grid"
_OWN_NETWORK = "it works on the raw output of a network in EDM's preconditioning; "
_UPWARDS = "it walks up from a picture; `Pipeline.invert` does so with a sampler of ours"
_PARALLEL = "its step is that of one picture with others side by side; "
REFUSED = {
    "CosineDPMSolverMultistepScheduler": _OWN_NETWORK + "use DPMSolverMultistepScheduler",
    "DDIMInverseScheduler": _UPWARDS,
    "DDIMParallelScheduler": _PARALLEL + "use DDIMScheduler",
    "DDPMParallelScheduler": _PARALLEL + "use DDPMScheduler",
    "DPMSolverMultistepInverseScheduler": _UPWARDS,
    "DPMSolverSDEScheduler": "its noise comes from a Brownian tree of its own; "
    "use the sampler dpmpp_sde",
    "EDMDPMSolverMultistepScheduler": _OWN_NETWORK + "use DPMSolverMultistepScheduler",
    "EDMEulerScheduler": _OWN_NETWORK + "use EulerDiscreteScheduler",
    "IPNDMScheduler": "it makes its table itself; use the sampler ipndm",
    "LCMScheduler": _OWN_TABLE,
    "RePaintScheduler": "it needs a mask; `Pipeline.sample` takes one with any sampler",
    "SASolverScheduler": "the indices of a table of training switch its noise on and off",
    "TCDScheduler": _OWN_TABLE,
}

OWNED = frozenset({
    # of the table and the grid
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
    "rescale_betas_zero_snr", "timestep_spacing", "steps_offset", "timestep_type",
    "interpolation_type", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "use_lu_lambdas", "use_flow_sigmas", "flow_shift", "shift", "shift_terminal", "base_shift",
    "max_shift", "base_image_seq_len", "max_image_seq_len", "use_dynamic_shifting",
    "time_shift_type", "invert_sigmas", "sigma_min", "sigma_max", "lambda_min_clipped",
    "final_sigmas_type", "set_alpha_to_one", "skip_prk_steps",
    # of the prediction and the step
    "prediction_type", "model_output", "timestep", "sample", "generator", "variance_noise",
    "return_dict", "per_token_timesteps", "solver_p",
})  # fmt: skip
"""Options whose values the noise schedule, the time grid and the pipeline say."""
