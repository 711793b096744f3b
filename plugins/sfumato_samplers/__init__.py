"""Samplers: the reverse process, from noise to x0.

    renoising    ddpm, ddim, euler, euler_ancestral              one prediction a step, no memory
    heun         heun, edm, restart                              two, the second at the end
    midpoint     dpm2, dpmpp_2s_ancestral, dpmpp_sde             two, the second half-way
    multistep    lms, ipndm, pndm, deis                          one, and earlier ones' eps
    exponential  dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, unipc     one, and earlier ones' x0

All speak of a step as `intervals` does: in z = x / alpha and r = sigma / alpha, so on any schedule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato import Component, hookimpl
from sfumato_samplers.exponential import DPMPP2M, DPMPP2MSDE, DPMPP3MSDE, UniPC
from sfumato_samplers.heun import EDM, Heun, Restart
from sfumato_samplers.midpoint import DPM2, DPMPPSDE, DPMPP2SAncestral
from sfumato_samplers.multistep import DEIS, IPNDM, LMS, PNDM
from sfumato_samplers.renoising import DDIM, DDPM, Euler, EulerAncestral

if TYPE_CHECKING:
    from collections.abc import Iterable

SFUMATO_API = 1


@hookimpl
def sfumato_components() -> Iterable[type[Component]]:
    """The components of this plugin."""
    return [
        *(DDPM, DDIM, Euler, EulerAncestral),
        *(Heun, EDM, Restart),
        *(DPM2, DPMPP2SAncestral, DPMPPSDE),
        *(LMS, IPNDM, PNDM, DEIS),
        *(DPMPP2M, DPMPP2MSDE, DPMPP3MSDE, UniPC),
    ]
