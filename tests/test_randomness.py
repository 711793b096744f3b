"""Counter-based randomness: the published vectors, independence of the batch, and the right laws."""

import hashlib
import math

import pytest
import torch

from sfumato import Draw
from sfumato.randomness import key, permutation, philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "philox_key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers_of_philox_4x32_10(counter, philox_key, words):
    """Random123, kat_vectors."""
    result = philox([torch.tensor(c) for c in counter], [torch.tensor(k) for k in philox_key])
    assert tuple(map(int, result)) == words


def test_philox_broadcasts():
    counters = torch.arange(5)[:, None], torch.tensor(1), torch.arange(3), torch.tensor(7)
    grid = philox(counters, (torch.tensor(8), torch.tensor(9)))
    assert all(word.shape == (5, 3) for word in grid)
    single = philox([torch.tensor(v) for v in (4, 1, 2, 7)], [torch.tensor(8), torch.tensor(9)])
    assert [int(word[4, 2]) for word in grid] == [int(word) for word in single]


def test_key_is_the_hash_of_seed_and_stream():
    digest = hashlib.blake2b(b"7/noise", digest_size=8).digest()
    low, high = key(7, "noise")
    assert (high << 32 | low).to_bytes(8, "little") == digest
    assert len({key(seed, stream) for seed in range(20) for stream in "abc"}) == 60


def draw(examples, seed=0, stream="sampling", index=0):
    return Draw(seed=seed, stream=stream, examples=torch.tensor(examples), index=index)


BIG = 2**40 + 3


@pytest.mark.fault("one seed")
def test_an_example_has_the_same_noise_alone_and_in_any_batch():
    batch = draw([5, BIG, 0, 17]).normal("start", (3, 4, 4))
    for row, example in enumerate([5, BIG, 0, 17]):
        assert batch[row].equal(draw([example]).normal("start", (3, 4, 4))[0])
    assert draw([17, 5]).normal("start", (3, 4, 4)).equal(batch[[3, 0]])


def test_a_smaller_tensor_is_the_beginning_of_a_larger_one():
    large = draw([4]).bits("x", 11)
    for count in range(1, 11):
        assert draw([4]).bits("x", count).equal(large[:, :count])


def test_every_coordinate_changes_the_values():
    variations = [
        draw([3]).bits("a", 8),
        draw([3], seed=1).bits("a", 8),
        draw([3], seed=-1).bits("a", 8),
        draw([3], stream="training").bits("a", 8),
        draw([3], index=1).bits("a", 8),
        draw([4]).bits("a", 8),
        draw([3 + 2**32]).bits("a", 8),
        draw([3]).bits("b", 8),
    ]
    words = torch.cat(variations).flatten().tolist()
    assert len(set(words)) == len(words)


def test_a_seed_for_each_example():
    together = draw([0, 0, 7], seed=[10, 11, 10]).normal("start", (2, 3))
    for row, (seed, example) in enumerate([(10, 0), (11, 0), (10, 7)]):
        assert together[row].equal(draw([example], seed=seed).normal("start", (2, 3))[0])


def test_bits_are_words_in_which_every_bit_is_fair():
    words = draw(list(range(64)), seed=1).bits("x", 1024).flatten()
    assert words.dtype == torch.int64
    assert 0 <= int(words.min()) <= int(words.max()) <= ONES
    shares = torch.stack([(words >> bit & 1).double().mean() for bit in range(32)])
    # 65,536 flips: a standard error of 0.002.
    assert (shares - 0.5).abs().max() < 0.01


def kolmogorov_smirnov(values, cdf):
    """sqrt(n) times the largest distance of the distribution functions; above 1.95 once in 1,000."""
    ordered = cdf(values.double().sort().values)
    n = len(ordered)
    below, above = torch.arange(n) / n, torch.arange(1, n + 1) / n
    return math.sqrt(n) * float(torch.maximum(ordered - below, above - ordered).max())


def test_uniform_is_uniform_above_zero_up_to_one():
    values = draw(list(range(50_000)), seed=3).uniform("t")
    assert values.dtype == torch.float64
    assert 0 < float(values.min())
    assert float(values.max()) <= 1
    assert kolmogorov_smirnov(values, lambda u: u) < 1.95


def test_uniform_covers_both_ends(monkeypatch):
    ends = torch.tensor([[0], [ONES]])
    monkeypatch.setattr(Draw, "bits", lambda self, name, count: ends)
    assert draw([0, 1]).uniform("t").tolist() == [2.0**-32, 1.0]


def test_normal_is_normal():
    values = draw(list(range(50)), seed=4).normal("x", (5, 20, 20)).flatten()
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.var()) == pytest.approx(1, abs=0.02)
    assert float((values**3).mean()) == pytest.approx(0, abs=0.04)
    assert float((values**4).mean()) == pytest.approx(3, abs=0.1)
    assert kolmogorov_smirnov(values, torch.special.ndtr) < 1.95


def test_normals_are_not_correlated_with_their_neighbours():
    values = draw(list(range(100)), seed=5).normal("x", (1000,)).double()
    for lag in (1, 2, 3, 4):
        assert float((values[:, lag:] * values[:, :-lag]).mean()) == pytest.approx(0, abs=0.015)
    assert float((values[1:] * values[:-1]).mean()) == pytest.approx(0, abs=0.015)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normal_has_the_shape_and_dtype_asked_for(shape, dtype):
    values = draw([1, 2]).normal("x", shape, dtype)
    assert values.shape == (2, *shape)
    assert values.dtype == dtype
    assert values.isfinite().all()


def test_normal_is_cast_from_float64():
    wide = draw([1]).normal("x", (100,), torch.float64)
    assert draw([1]).normal("x", (100,)).equal(wide.float())


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_permutation_is_a_permutation(size):
    order = permutation(0, "order", 0, size)
    assert order.dtype == torch.int64
    assert order.sort().values.equal(torch.arange(size))


def test_permutation_depends_on_seed_stream_and_draw():
    orders = [
        permutation(0, "order", 0, 50),
        permutation(1, "order", 0, 50),
        permutation(0, "other", 0, 50),
        permutation(0, "order", 1, 50),
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert permutation(0, "order", 1, 50).equal(orders[3])


def test_permutation_is_fair():
    """In 1,200 orders of three, each of the six comes about 200 times."""
    words = [tuple(permutation(0, "fair", k, 3).tolist()) for k in range(1200)]
    counts = [words.count(order) for order in set(words)]
    assert len(counts) == 6
    assert max(abs(count - 200) for count in counts) < 60
