"""Every kind of exchange between ranks, checked on each; test_distributed.py starts it with mpirun."""

import os
import sys

import numpy as np
import tensorflow as tf

from recsys import distributed
from recsys.step import UserError


def message(function, *arguments) -> str:
    try:
        function(*arguments)
    except distributed.CommonError as error:
        return str(error)
    return ""


def fails_on(ranks, text):
    with distributed.agreed():
        if distributed.rank() in ranks:
            raise UserError(text)


def picky(number: int) -> int:
    if number == 4:
        raise UserError("four is not allowed")
    return number * number


def main() -> None:
    distributed.init()
    rank, size = distributed.rank(), distributed.size()
    assert size == int(sys.argv[1])

    # Objects.
    assert distributed.gather({"rank": rank, "long": "x" * rank}) == [
        {"rank": number, "long": "x" * number} for number in range(size)
    ]
    assert distributed.broadcast(f"of rank {rank}") == "of rank 0"
    for count in (0, 1, size, 3 * size + 1):
        assert distributed.spread(lambda n: n * n, range(count)) == [n * n for n in range(count)]

    # Mistakes: of one rank, of all, in the middle of shared work.
    assert message(fails_on, [1], "disk full") == "rank 1: disk full"
    assert message(fails_on, range(size), "no such file") == "no such file"
    assert message(distributed.spread, picky, range(6)).endswith("four is not allowed")
    assert message(fails_on, [], "") == ""

    # Gradients: sums, also of numbers that float16 cannot hold, and of zeros; NaN stays NaN.
    generator = np.random.default_rng(1)
    shares = [generator.normal(size=(size, 40, 3)) * scale for scale in (1e-12, 1.0, 3e7, 0.0)]
    shares = [share.astype(np.float32) for share in shares]
    for compress in (False, True):
        step = tf.function(lambda loss, *parts, c=compress: distributed.sum_gradients(loss, list(parts), c))
        loss, sums = step(tf.constant(float(rank)), *(share[rank] for share in shares))
        assert float(loss) == size * (size - 1) / 2
        for found, share in zip(sums, shares, strict=True):
            exact = share.astype(np.float64).sum(axis=0)
            error = np.abs(found.numpy() - exact).max() / max(np.abs(exact).max(), 1e-30)
            assert error < (2e-3 if compress else 1e-6), (compress, error)
        _, (found,) = step(tf.constant(1.0), tf.constant([np.nan if rank == 1 else 1.0, 2.0]))
        assert np.isnan(found.numpy()[0])

    # The proof.
    os.environ["RECSYS_NUM_WORKERS"] = str(size)
    assert len(distributed.prove({"code": "a"})) == size
    os.environ["RECSYS_NUM_HOSTS"] = "2"
    told = message(distributed.prove, {"code": "ab"[rank == 1], "dataset": "d" if rank == 0 else ""})
    assert "RECSYS_NUM_HOSTS is 2, there is 1" in told, told
    assert "a on ranks 0" in told, told
    assert "b on rank 1" in told, told
    assert "dataset" not in told, told
    distributed.broadcast(None)
    print(f"rank {rank} agrees")


if __name__ == "__main__":
    main()
