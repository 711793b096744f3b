import torch

from sfumato_autoencoders import Patches, Pixels


def test_pixels_are_their_own_latents(parity):
    pixels = Pixels()
    module = pixels.build()
    images = torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))

    assert torch.equal(module.encode(images), images)
    parity(pixels, "the identity", "latents, float32", module.encode(images), images)
    assert torch.equal(module.decode(images), images)
    assert (pixels.channels, pixels.factor) == (3, 1)
    assert not module.state_dict()


def test_patches_hold_the_pixels_of_their_square(parity):
    patches = Patches(side=2)
    module = patches.build()
    images = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    latents = module.encode(images)

    assert latents.shape == (2, patches.channels, 4 // patches.factor, 6 // patches.factor)
    assert torch.equal(latents[1, :4, 1, 2], images[1, 0, 2:4, 4:6].flatten())
    assert torch.equal(module.decode(latents), images)
    parity(patches, "the identity", "decoded latents, float32", module.decode(latents), images)
    assert not module.state_dict()
