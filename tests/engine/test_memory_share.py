"""The share of memory that vLLM takes by default, against vLLM itself."""

from vllm.config import CacheConfig

from vsteer.engine.memory_share import DEFAULT, memory_share


def test_it_is_vllms_own() -> None:
    assert memory_share() == CacheConfig().gpu_memory_utilization
    # where vLLM is not installed, a plan reckons with that of the version the tests run on
    assert memory_share() == DEFAULT
