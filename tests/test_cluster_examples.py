"""What stands in cluster/ is valid: Ray's own parsers and schema read it. Starts no Ray."""

import copy
import functools
import os
import re
import shlex
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError

from bbo.config.files import apply

# Ray reads this once, when it is imported, and other tests of this process start one: as in bbo.places.
os.environ.setdefault("RAY_AUTH_MODE", "token")

from ray.autoscaler._private import resource_demand_scheduler as scheduler
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
KEYS = {"type", "address", "n_workers", "gpus_per_worker", "cpus_per_worker", "max_batch", "load_prior"}
"""The keys of the section `executor` of a campaign file."""
TOKEN_AUTHENTICATION = (2, 52)
"""The first Ray that has it."""


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def parsed(command: list[str]) -> dict:
    """What Ray's command line makes of a command; an option that it does not have raises."""
    assert command[0] == "ray"
    return ray_cli.commands[command[1]].make_context(command[1], command[2:]).params


def readme_commands(program: str) -> list[list[str]]:
    """The commands of a program in the README's blocks, as words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


# --- what all of them share


def test_every_executor_setting_that_is_named_exists():
    named = {
        (path.name, key)
        for path in CLUSTER.iterdir()
        for key in re.findall(r"\bexecutor\.(\w+)", path.read_text())
    }
    assert {(name, key) for name, key in named if key not in KEYS} == set()
    assert {("README.md", "address"), ("slurm.sbatch", "n_workers")} <= named


def test_the_readme_shows_every_setting():
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    shown = yaml.safe_load(block)
    assert set(shown["executor"]) == KEYS
    assert shown["oracle"]["parallel"] > 1


def test_versions_are_those_that_were_tested_together():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = dict(
        re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    )
    tested["bbo-diffusion"] = project["version"]
    named = defaultdict(set)
    for text in (path.read_text() for path in CLUSTER.iterdir()):
        for package, version in re.findall(r"\b(ray|torch|bbo-diffusion)(?:\[\w+\])?==([\d.]+)", text):
            named[package].add(version)
        for ray, python in re.findall(r"rayproject/ray:([\d.]+)-py(\d+)-", text):
            named["ray"].add(ray)
            named["python"].add(f"{python[0]}.{python[1:]}")
    assert named.pop("python") == {project["requires-python"].removeprefix(">=")}
    assert named == {package: {tested[package]} for package in ("ray", "torch", "bbo-diffusion")}
    (least,) = (
        re.findall(r"[\d.]+", entry)[0] for entry in project["dependencies"] if entry.startswith("ray")
    )
    assert numbers(tested["ray"]) >= max(numbers(least), TOKEN_AUTHENTICATION)


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_no_secret_and_no_dashboard_stand_in_a_file(path):
    text = path.read_text()
    assert not re.search(r"\b[0-9a-f]{24,}\b|RAY_AUTH_TOKEN[:=]\s*\S", text)
    if path.name != "README.md":
        assert "8265" not in text
        assert re.search(r"include-dashboard[=:] ?\"?false\b", text)
        assert "disable-usage-stats" in text


def test_the_readme_names_files_that_are_there_and_commands_that_ray_has():
    assert {path.name for path in CLUSTER.iterdir()} - {"README.md"} == set(
        re.findall(r"^\|[^|]*\| `([\w.]+)` \|", README, flags=re.MULTILINE)
    )
    for name in re.findall(r"\bcluster/([\w.]+\w)", README):
        assert (CLUSTER / name).exists(), name
    commands = readme_commands("ray")
    for command in commands:
        until = min((i for i, word in enumerate(command) if word in {"&&", ">/dev/null"}), default=None)
        parsed(command[:until])
    used = {command[1] for command in commands}
    assert used == {"start", "up", "rsync-up", "exec", "attach", "down", "get-auth-token"}


def test_the_overrides_that_the_readme_gives_are_settings_of_the_executor():
    runs = re.findall(r"bbo run mine\.yaml((?: [\w.]+=\w+)+)", README)
    assert len(runs) == 3
    for overrides in runs:
        raw: dict = {}
        for override in overrides.split():
            apply(raw, override)
        assert raw["executor"]["address"] == "auto"
        assert set(raw["executor"]) <= KEYS


# --- autoscaler.yaml


@pytest.fixture
def autoscaler() -> dict:
    return yaml.safe_load((CLUSTER / "autoscaler.yaml").read_text())


def test_ray_accepts_the_autoscaler_file(autoscaler):
    validate_config(prepare_config(autoscaler))


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("max_wokers",), 8, "max_wokers"),
        (("docker", "imagge"), "x", "imagge"),
        (("head_node_type",), "haed", "must be one of `available_node_types`"),
        (("available_node_types", "gpu_worker", "resources", "GPU"), 0.5, "0.5 is not of type 'integer'"),
        (("available_node_types", "gpu_worker", "min_workers"), 9, "`max_workers` is smaller"),
        (("worker_start_ray_commands",), "ray start", "is not of type 'array'"),
    ],
)
def test_ray_notices_a_mistake(autoscaler, path, value, complaint):
    section = autoscaler
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises((ValueError, ValidationError), match=re.escape(complaint)):
        validate_config(prepare_config(autoscaler))


def test_eight_workers_start_eight_gpu_machines_and_no_second_head(autoscaler):
    config = prepare_config(autoscaler)
    scorer = functools.partial(
        scheduler._default_utilization_scorer,
        node_availability_summary=NodeAvailabilitySummary(node_availabilities={}),
    )
    started, left = scheduler.get_nodes_for(
        config["available_node_types"],
        {"head": 1},
        config["head_node_type"],
        config["max_workers"],
        [{"CPU": 1, "GPU": 1}] * 9,
        scorer,
    )
    assert dict(started) == {"gpu_worker": 8}
    assert left == [{"CPU": 1, "GPU": 1}]  # the ninth waits


def test_the_nodes_of_the_autoscaler_get_the_token_and_nobody_else(autoscaler):
    assert autoscaler["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--env RAY_AUTH_MODE=token" in autoscaler["docker"]["run_options"]
    *_, head = autoscaler["head_start_ray_commands"]
    *_, worker = autoscaler["worker_start_ray_commands"]
    head, worker = parsed(shlex.split(head)), parsed(shlex.split(worker))
    assert head["head"]
    assert head["include_dashboard"] is False
    assert head["disable_usage_stats"]
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert not worker["head"]


def test_the_ledger_outlives_the_container_of_the_head(autoscaler):
    (volume,) = autoscaler["docker"]["head_run_options"]
    on_host, in_container = volume.removeprefix("--volume ").split(":")
    assert f"mkdir -p {on_host}" in autoscaler["initialization_commands"]
    assert f" {in_container}/" in README  # where the commands put the campaign


# --- kuberay.yaml


FIELDS = {
    "RayCluster": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    },
    "authOptions": {"mode", "secretName", "enableK8sTokenAuth"},
    "autoscalerOptions": {"idleTimeoutSeconds", "upscalingMode", "version", "resources", "image"},
    "headGroupSpec": {"rayStartParams", "template", "serviceType", "headService"},
    "workerGroupSpecs": {
        "groupName",
        "replicas",
        "minReplicas",
        "maxReplicas",
        "rayStartParams",
        "template",
        "idleTimeoutSeconds",
    },
    "template": {"metadata", "spec"},
    "pod": {"containers", "volumes", "securityContext", "nodeSelector", "tolerations", "imagePullSecrets"},
    "containers": {"name", "image", "env", "ports", "resources", "volumeMounts", "imagePullPolicy"},
}
"""Fields of KubeRay 1.6 and of pods that these files may use. The API server drops what it does not know."""


@pytest.fixture
def documents() -> dict[str, dict]:
    loaded = list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))
    assert len({document["kind"] for document in loaded}) == len(loaded)
    return {document["kind"]: document for document in loaded}


def groups(cluster: dict) -> list[dict]:
    return [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]


def unknown_fields(section: dict, kind: str) -> set[str]:
    """Fields in a part of a RayCluster that FIELDS does not know, all the way down."""
    found = set(section) - FIELDS[kind]
    for key, value in section.items():
        inner = "pod" if (kind, key) == ("template", "spec") else key
        if inner in FIELDS:
            for part in value if isinstance(value, list) else [value]:
                found |= unknown_fields(part, inner)
    return found


def test_the_ray_cluster_is_one_for_the_operator(documents):
    cluster = documents["RayCluster"]
    assert cluster["apiVersion"] == "ray.io/v1"
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", cluster["metadata"]["name"])
    assert unknown_fields(cluster, "RayCluster") == set()
    misspelt = copy.deepcopy(cluster)
    misspelt["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagge"] = "x"
    assert unknown_fields(misspelt, "RayCluster") == {"imagge"}


def test_the_ray_cluster_wants_a_token_and_one_version(documents):
    spec = documents["RayCluster"]["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    images = {
        group["template"]["spec"]["containers"][0]["image"] for group in groups(documents["RayCluster"])
    }
    (image,) = images
    assert image.endswith(f"-ray{spec['rayVersion']}")
    (of_dockerfile,) = re.findall(r"^FROM rayproject/ray:([\d.]+)-", README, flags=re.MULTILINE)
    assert spec["rayVersion"] == of_dockerfile


def started(group: dict) -> dict:
    """What Ray makes of the options that the operator writes: `true` is a flag, except where Ray wants a value."""
    options = []
    for key, value in group["rayStartParams"].items():
        assert isinstance(value, str)
        options.append(f"--{key}" if (value, key) == ("true", "disable-usage-stats") else f"--{key}={value}")
    return parsed(["ray", "start", *options])


def test_ray_accepts_the_start_parameters(documents):
    head, workers = (started(group) for group in groups(documents["RayCluster"]))
    assert head["num_cpus"] == 0  # left to the driver
    assert head["include_dashboard"] is False
    assert head["disable_usage_stats"]
    assert workers["num_cpus"] is None  # what the container has
    assert workers["num_gpus"] is None


def test_the_pods_have_names_resources_and_one_thread(documents):
    for group in groups(documents["RayCluster"]):
        (container,) = group["template"]["spec"]["containers"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", container["name"])
        assert {"name": "OMP_NUM_THREADS", "value": "1"} in container["env"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]  # Ray believes the limits
        assert {"cpu", "memory"} <= set(limits)
        assert all(re.fullmatch(r"\d+(m|[KMGT]i)?", str(amount)) for amount in limits.values())


def test_the_workers_have_gpus_and_may_all_go(documents):
    (workers,) = documents["RayCluster"]["spec"]["workerGroupSpecs"]
    assert 0 == workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert documents["RayCluster"]["spec"]["enableInTreeAutoscaling"] is True


def test_the_ledger_is_on_the_volume_of_the_head(documents):
    claim = documents["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    pod = documents["RayCluster"]["spec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = pod["volumes"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert mount["name"] == volume["name"]
    assert mount["mountPath"] == "/home/ray/campaigns"  # `campaigns` in the README's commands


def test_only_the_pods_of_the_cluster_reach_it(documents):
    cluster, policy = documents["RayCluster"], documents["NetworkPolicy"]
    of_cluster = {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}
    assert policy["apiVersion"] == "networking.k8s.io/v1"
    assert policy["spec"] == {
        "podSelector": of_cluster,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": of_cluster}]}],
    }
    assert f"-l ray.io/cluster={cluster['metadata']['name']}," in README
