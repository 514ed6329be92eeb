"""The loop's benchmark measures what it says, on a few rows."""

from tests.bench.loop import bench_loop


def test_the_loops_benchmark_has_its_figures() -> None:
    memory, rate, blocks = bench_loop(2_000, "tiny-llama")
    assert memory.note.endswith("from row 100 to row 2,000")
    # what other tests have given back may serve it, so that it grows by nothing or even shrinks
    assert memory.value > 0
    assert rate.value > 100
    assert blocks.value > rate.value
