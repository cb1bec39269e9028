"""Preflight from the command line. No test depends on how fast the machine is: tolerance 0 lets any
speed pass, tolerance 1 none but the fastest."""

import json
import subprocess

import pytest
from conftest import run

BAD_INPUT, BAD_NODE = 2, 5
SHORT = ("check-node", "--seconds", "0.5")
ANY_SPEED = (*SHORT, "--tolerance", "0", "--varied-tolerance", "0")


@pytest.mark.parametrize("ranks", [0, 3])
def test_all_is_measured_once(ranks, supra, tmp_path):
    result = supra(*ANY_SPEED, "--folder", tmp_path, "--json", ranks=ranks)
    found = json.loads(result.stdout)
    count = max(ranks, 1)
    assert len(found["hosts"]) == 1 and len(found["ranks"]) == count
    assert len(found["links"]) == count * (count - 1) // 2
    for rank in found["ranks"]:
        assert rank["exact"]
        for measure in ("product_flops", "memory_bytes"):
            assert rank[f"{measure}_per_second"] > 0
    for link in found["links"]:
        assert link["state"] == "measured"
        assert link["bytes_per_second"] > 0 and link["latency_seconds"] > 0
    assert found["hosts"][0]["disk_bytes_per_second"] > 0
    assert found["blamed"] == [] and not list(tmp_path.iterdir())


def test_the_table_has_a_row_for_each_rank(supra):
    said = supra(*ANY_SPEED, ranks=2).stdout
    for part in ("rank 0", "rank 1", "TFLOP/s", "fsync", "no host is slow or wrong"):
        assert part in said, said


def test_a_slow_host_is_named_on_every_rank_and_written_down(exit_codes, tmp_path):
    codes, said = exit_codes(2, *SHORT, "--tolerance", "1", "--folder", tmp_path)
    assert codes == [BAD_NODE, BAD_NODE], said
    complaints = [line for line in said.splitlines() if line.startswith("supra: ")]
    assert len(complaints) == 1 and "leave out " in complaints[0], said
    host, reason = (tmp_path / "blamed-nodes").read_text().rstrip("\n").split("\t")
    assert host in complaints[0] and reason in complaints[0]
    assert "the median is" in reason


def test_a_folder_that_nobody_can_write_into_is_bad_input(exit_codes, tmp_path):
    codes, said = exit_codes(2, *ANY_SPEED, "--folder", tmp_path / "nowhere")
    assert codes == [BAD_INPUT, BAD_INPUT]
    assert "nowhere" in said


def test_ranks_of_several_hosts_are_told_apart(build):
    """Hosts by name only, which a rank of its own can have where namespaces are allowed."""
    if subprocess.run(["unshare", "--uts", "true"], check=False).returncode != 0:
        pytest.skip("a rank cannot have a host name of its own here")
    as_host = 'hostname "n$((OMPI_COMM_WORLD_RANK / 2)).cluster"; exec "$@"'
    command = ["unshare", "--uts", "bash", "-c", as_host, "bash", build / "supra", *ANY_SPEED]
    result = run(["mpirun", "-n", 5, *command, "--json"], timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [host["host"] for host in found["hosts"]] == ["n0", "n1", "n2"]
    assert [rank["host"] for rank in found["ranks"]] == ["n0", "n0", "n1", "n1", "n2"]
    ends = [link["ends"] for link in found["links"]]
    assert ends == [["n0", "n1"], ["n0", "n2"], ["n1", "n2"]]
