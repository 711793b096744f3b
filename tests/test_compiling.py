import attrs
import pytest
import torch

from sfumato import Space, TextEmbedding
from sfumato.compiling import Call, Compiled, Unknown
from sfumato_schedules import LinearBeta
from sfumato_unet import UNet


@attrs.frozen(eq=False)
class Condition:
    parts: tuple
    by_name: dict
    scale: float = 2.0
    nothing: None = None


def condition(*shape):
    first, second, third = (torch.full(shape, value) for value in (1.0, 2.0, 3.0))
    return Condition(parts=(first, [second]), by_name={"third": third})


def test_a_call_is_put_together_again_from_other_tensors():
    call = Call.of(torch.zeros(4), condition(2, 3))

    x, again = call.rebuild(iter([tensor + 10 for tensor in call.tensors]))

    assert [float(tensor.flatten()[0]) for tensor in call.tensors] == [0, 1, 2, 3]
    assert x.equal(torch.full((4,), 10.0))
    assert again.parts[0].equal(torch.full((2, 3), 11.0))
    assert again.parts[1][0].equal(torch.full((2, 3), 12.0))
    assert again.by_name["third"].equal(torch.full((2, 3), 13.0))
    assert again.scale == 2.0 and again.nothing is None


def test_calls_of_other_shapes_types_or_numbers_are_of_another_kind():
    plain = Call.of(condition(2, 3))

    assert Call.of(condition(2, 3)).kind == plain.kind
    hash(plain.kind)
    for other in (
        condition(2, 4),
        attrs.evolve(condition(2, 3), scale=3.0),
        attrs.evolve(condition(2, 3), by_name={"fourth": torch.zeros(2, 3)}),
        attrs.evolve(condition(2, 3), nothing=torch.zeros(1)),
    ):
        assert Call.of(other).kind != plain.kind


def test_what_might_hide_a_tensor_is_not_recorded():
    with pytest.raises(Unknown):
        Call.of(torch.zeros(1), object())


def network():
    torch.manual_seed(0)
    space = Space(
        channels=3, height=8, width=8, text_width=12, pooled_width=10, schedule=LinearBeta()
    )
    module = UNet(channels=(8, 8), attention=(False, True), heads=(2,), groups=4).build(space)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval().requires_grad_(False)


@pytest.mark.slow
def test_a_compiled_denoiser_says_what_it_said_before_also_with_new_weights():
    module = network()
    compiled, times = Compiled(module), torch.tensor([0.9, 0.5], dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    text = TextEmbedding(
        tokens=torch.randn(2, 5, 12, generator=draw),
        mask=torch.ones(2, 5, dtype=torch.bool),
        pooled=torch.randn(2, 10, generator=draw),
    )
    x = torch.randn(2, 3, 8, 8, generator=draw)

    for _ in range(2):
        known = compiled.precompute(text, times)
        for t in (*times, times.mean()):
            said = compiled(x, t.expand(2), compiled.at(known, t))
            torch.testing.assert_close(said, module(x, t.expand(2), text), rtol=1e-4, atol=1e-5)
        for parameter in module.parameters():
            parameter.mul_(1.1)
