"""`vsteer bench` has what a user measures on their own machine, each in short and as JSON."""

from vsteer.cli.bench import bench


def test_every_benchmark_can_be_quick_and_print_json() -> None:
    assert set(bench.commands) == {"engine", "extract", "forks", "mechanism", "replicas", "run"}
    for command in bench.commands.values():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--quick", "--json"} <= options
