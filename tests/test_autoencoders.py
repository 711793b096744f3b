import torch

from sfumato_autoencoders import Pixels


def test_pixels_are_their_own_latents():
    module = Pixels().build()
    images = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))

    assert torch.equal(module.encode(images), images)
    assert torch.equal(module.decode(images), images)
    assert (module.channels, module.factor) == (3, 1)
    assert not module.state_dict()
