"""template.yaml agrees with the code, the state machine and the folders, and is safe and cheap unless told otherwise."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from local.deployer import load_template, user_data_environment
from markserve import errors, messages, telemetry
from markserve.core.tunables import Tunables, parse_tunable, tunable_names
from markserve.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = load_template(REPOSITORY / "template.yaml")
RESOURCES: dict[str, dict[str, Any]] = TEMPLATE["Resources"]
FUNCTION, STATE_MACHINE = "AWS::Serverless::Function", "AWS::Serverless::StateMachine"
FOLDERS = sorted(path.name for path in (REPOSITORY / "functions").iterdir() if path.is_dir())
# Actions that AWS offers no resource for.
UNSCOPABLE = re.compile(
    r"ec2:Describe.*|ssmmessages:.*|xray:Put.*|ssm:UpdateInstanceInformation|logs:(Create|Get|Update|Delete|List)LogDeliver.*|logs:PutResourcePolicy|logs:Describe.*"
)
OPTIONAL = {spec.name for spec in fields(Settings) if spec.default is not MISSING and spec.default != ""}
# Local code names these after a deployment; in AWS, user data reads them from the instance's metadata.
FROM_METADATA = {"model", "instance_id", "instance_type"}


def of_type(resource_type: str) -> dict[str, dict[str, Any]]:
    found = {name: resource.get("Properties", {}) for name, resource in RESOURCES.items() if resource["Type"] == resource_type}
    assert found, f"no {resource_type}: the test would prove nothing"
    return found


def function(folder: str) -> dict[str, Any]:
    return RESOURCES[f"{folder.capitalize()}Function"]


def parameter_default(value: Any) -> Any:
    """A property's value with a reference to a template parameter replaced by its default."""
    return TEMPLATE["Parameters"][value["Ref"]]["Default"] if isinstance(value, dict) else value


def user_data() -> str:
    launch = RESOURCES["WorkerLaunchTemplate"]["Properties"]["LaunchTemplateData"]
    text: str = launch["UserData"]["Fn::Base64"]["Fn::Sub"]
    return text


def environment_of(folder: str) -> set[str]:
    """Settings fields that a function's environment holds."""
    shared = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    own = function(folder)["Properties"].get("Environment", {}).get("Variables", {})
    return {name.removeprefix("MARKSERVE_").lower() for name in {**shared, **own} if name.startswith("MARKSERVE_")}


# --- functions ------------------------------------------------------------------------------------------------------


def test_every_function_folder_is_a_function_of_the_template_and_the_reverse() -> None:
    names = {properties["FunctionName"]["Fn::Sub"] for properties in of_type(FUNCTION).values()}

    assert names == {f"${{AWS::StackName}}-{folder}" for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_function_runs_the_code_of_its_own_folder(folder: str) -> None:
    resource = function(folder)
    if resource["Properties"].get("PackageType") == "Image":
        dockerfile = REPOSITORY / resource["Metadata"]["Dockerfile"]
        copied = [line.split()[1] for line in dockerfile.read_text().splitlines() if line.startswith("COPY")]

        assert dockerfile.parent == REPOSITORY / "functions" / folder
        assert resource["Metadata"]["DockerContext"] == "."
        assert all(list(REPOSITORY.glob(source)) for source in copied)
        assert 'CMD ["app.handler"]' in dockerfile.read_text()
        assert resource["IgnoreGlobals"] == ["Runtime", "Handler", "Layers"]
    else:
        assert resource["Properties"]["CodeUri"].strip("/") == f"functions/{folder}"
        assert TEMPLATE["Globals"]["Function"]["Handler"] == "app.handler"
    assert (REPOSITORY / "functions" / folder / "app.py").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_function_logs_to_a_group_of_its_own_that_forgets(folder: str) -> None:
    group = RESOURCES[function(folder)["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]]["Properties"]

    assert group["LogGroupName"]["Fn::Sub"] == f"/aws/lambda/${{AWS::StackName}}-{folder}"
    assert group["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def test_docker_context_admits_what_the_dockerfiles_copy_and_ignores_the_rest() -> None:
    admitted = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert admitted == {"layers/markserve", "functions/forecast", "functions/spillover"}


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_function_gets_only_variables_that_settings_know(folder: str) -> None:
    assert environment_of(folder) - {spec.name for spec in fields(Settings)} == set()


def settings_used(*sources: Path) -> set[str]:
    """Settings fields that code depends on: `settings().x` itself, and what the builders of `wiring` that it calls need."""
    wiring_tree = ast.parse((REPOSITORY / "layers/markserve/markserve/wiring.py").read_text())
    builders = {node.name: ast.unparse(node) for node in wiring_tree.body if isinstance(node, ast.FunctionDef)}
    text = "\n".join(path.read_text() for path in sources)
    used: set[str] = set()
    pending, seen = [text], set()
    while pending:
        code = pending.pop()
        used.update(re.findall(r"\bsettings\(\)\.(\w+)", code), re.findall(r"_named\(['\"](\w+)['\"]\)", code))
        used.update(re.findall(r"\bsettings\.(\w+)", code))
        called = {name for name in builders if re.search(rf"(?:wiring\.|(?<![\w.])){name}\(", code)} - seen
        seen |= called
        pending.extend(builders[name] for name in called)
    return used & {spec.name for spec in fields(Settings)}


@pytest.mark.parametrize("folder", FOLDERS)
def test_function_gets_every_setting_that_its_code_depends_on(folder: str) -> None:
    used = settings_used(*(REPOSITORY / "functions" / folder).glob("*.py"))

    assert "stack_name" in environment_of(folder)
    # A worker's own identity is asked for by shared builders, and empty elsewhere; so is what has a good default.
    assert used - environment_of(folder) - FROM_METADATA - OPTIONAL == set()


def test_worker_gets_every_setting_that_its_code_depends_on_and_none_that_settings_do_not_know() -> None:
    given = {name.removeprefix("MARKSERVE_").lower() for name in user_data_environment(user_data()) if name.startswith("MARKSERVE_")}
    second_half = (REPOSITORY / "worker/user_data.sh").read_text()
    given |= {name.removeprefix("MARKSERVE_").lower() for name in user_data_environment(second_half) if name.startswith("MARKSERVE_")}
    used = settings_used(*(REPOSITORY / "worker").glob("*.py"))

    assert used - given - OPTIONAL == set()
    assert given - {spec.name for spec in fields(Settings)} == set()
    assert given >= FROM_METADATA


# --- operator parameters --------------------------------------------------------------------------------------------


def test_every_tunable_is_a_parameter_and_the_reverse() -> None:
    names = {properties["Name"]["Fn::Sub"] for properties in of_type("AWS::SSM::Parameter").values()}

    assert names == {f"/${{AWS::StackName}}/{name}" for name in tunable_names()}


def test_parameters_start_with_the_defaults_of_the_code() -> None:
    defaults = {}
    for properties in of_type("AWS::SSM::Parameter").values():
        field, value = parse_tunable(properties["Name"]["Fn::Sub"].rsplit("/", 1)[1], str(parameter_default(properties["Value"])))
        defaults[field] = value

    assert Tunables(**defaults) == Tunables()


def test_nothing_that_costs_money_by_the_hour_is_on_by_default() -> None:
    defaults = {name: parameter.get("Default") for name, parameter in TEMPLATE["Parameters"].items()}

    assert (defaults["ControlEnabled"], defaults["LaunchesEnabled"], defaults["TrainingEnabled"]) == ("false", "false", "false")
    switches = {name: properties["State"] for name, properties in of_type("AWS::Scheduler::Schedule").items()}
    switches["TrainingRule"] = RESOURCES["TrainingRule"]["Properties"]["State"]
    assert switches == {
        "ControlSchedule": {"Fn::If": ["ControlIsEnabled", "ENABLED", "DISABLED"]},
        "TrainingSchedule": {"Fn::If": ["TrainingIsEnabled", "ENABLED", "DISABLED"]},
        "TrainingRule": {"Fn::If": ["TrainingIsEnabled", "ENABLED", "DISABLED"]},
    }


def test_training_follows_the_events_that_ask_for_it_and_names_the_model() -> None:
    rule = RESOURCES["TrainingRule"]["Properties"]
    transformer = rule["Targets"][0]["InputTransformer"]

    assert all(issubclass(getattr(messages, name), messages.Message) for name in rule["EventPattern"]["detail-type"])
    assert transformer["InputPathsMap"] == {"model": "$.detail.model"}
    assert json.loads(transformer["InputTemplate"].replace("<model>", '"digits"')) == {"action": "train", "model": "digits"}


# --- state machine --------------------------------------------------------------------------------------------------


def states(definition: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All states, those inside Map included."""
    found: dict[str, dict[str, Any]] = {}
    for name, state in definition["States"].items():
        found[name] = state
        if "ItemProcessor" in state:
            found |= states(state["ItemProcessor"])
    return found


MACHINES = of_type(STATE_MACHINE)


@pytest.mark.parametrize("name", MACHINES)
def test_state_machine_has_a_substitution_for_each_placeholder_and_no_other(name: str) -> None:
    definition = (REPOSITORY / MACHINES[name]["DefinitionUri"]).read_text()

    assert set(re.findall(r"\$\{(\w+)\}", definition)) == set(MACHINES[name]["DefinitionSubstitutions"])


@pytest.mark.parametrize("name", MACHINES)
def test_state_machine_names_only_errors_that_exist(name: str) -> None:
    definition = json.loads((REPOSITORY / MACHINES[name]["DefinitionUri"]).read_text())
    named = {
        error
        for state in states(definition).values()
        for rule in [*state.get("Retry", []), *state.get("Catch", [])]
        for error in rule["ErrorEquals"]
        if not error.startswith(("States.", "Lambda."))
    }

    assert named == {"Transient", "Throttled", "DependencyUnavailable"} | ({"StaleWrite"} if name == "ControlCycle" else set())
    assert all(hasattr(errors, error) for error in named)


def test_control_cycle_goes_on_planning_when_the_forecast_fails_and_applying_when_an_action_fails() -> None:
    cycle = states(json.loads((REPOSITORY / "statemachines/control_cycle.asl.json").read_text()))

    assert next(rule for rule in cycle["Forecast"]["Catch"] if rule["ErrorEquals"] == ["States.ALL"])["Next"] == "Plan"
    assert next(rule for rule in cycle["Lifecycle"]["Catch"] if rule["ErrorEquals"] == ["States.ALL"])["Next"] == "ActionFailed"
    assert all("TimeoutSeconds" in state for state in cycle.values() if state["Type"] == "Task")


def test_plan_that_was_overtaken_is_made_again_once_the_other_is_carried_out() -> None:
    cycle = states(json.loads((REPOSITORY / "statemachines/control_cycle.asl.json").read_text()))

    assert next(rule for rule in cycle["Plan"]["Retry"] if "StaleWrite" in rule["ErrorEquals"])["IntervalSeconds"] >= 2


def test_control_cycle_is_started_by_the_clock_an_objective_at_risk_and_an_interruption() -> None:
    rules = RESOURCES["ControlCycle"]["Properties"]["Events"]
    triggers = {json.loads(rule["Properties"]["Input"])["trigger"] for rule in rules.values()}
    triggers.add(json.loads(RESOURCES["ControlSchedule"]["Properties"]["Target"]["Input"])["trigger"])

    assert triggers == {"schedule", "slo_at_risk", "interruption"}


# --- storage, messaging, security -----------------------------------------------------------------------------------


def test_tables_are_on_demand_encrypted_and_expire_items() -> None:
    for properties in of_type("AWS::DynamoDB::Table").values():
        assert properties["BillingMode"] == "PAY_PER_REQUEST"
        assert properties["SSESpecification"]["SSEEnabled"] is True
        assert properties["TimeToLiveSpecification"] == {"AttributeName": "expires_at_s", "Enabled": True}


def test_queues_are_encrypted_and_have_a_dead_letter_queue_or_are_one() -> None:
    for name, properties in of_type("AWS::SQS::Queue").items():
        own = {"SqsManagedSseEnabled": {"Fn::If": ["HasKmsKey", {"Ref": "AWS::NoValue"}, True]}}
        own["KmsMasterKeyId"] = {"Fn::If": ["HasKmsKey", {"Ref": "KmsKeyArn"}, {"Ref": "AWS::NoValue"}]}
        assert properties["SqsManagedSseEnabled"] is True if name == "EventsDeadLetterQueue" else own.items() <= properties.items()
        assert name.endswith("DeadLetterQueue") or properties["RedrivePolicy"]["maxReceiveCount"] == 5


def test_bucket_is_encrypted_and_not_public() -> None:
    for properties in of_type("AWS::S3::Bucket").values():
        assert properties["BucketEncryption"]
        assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}


def statements() -> list[tuple[str, dict[str, Any]]]:
    roles = [(name, policy["PolicyDocument"]) for name, role in of_type("AWS::IAM::Role").items() for policy in role["Policies"]]
    managed = [(name, policy["PolicyDocument"]) for name, policy in of_type("AWS::IAM::ManagedPolicy").items()]
    with_options = [(name, statement) for name, document in roles + managed for statement in document["Statement"]]
    return [(name, statement["Fn::If"][1] if "Fn::If" in statement else statement) for name, statement in with_options]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_every_role_is_of_one_process() -> None:
    roles = [properties["Role"]["Fn::GetAtt"][0] for properties in of_type(FUNCTION).values()]

    assert len(set(roles)) == len(FOLDERS)


def test_no_policy_allows_an_action_by_wildcard() -> None:
    assert [(name, action) for name, statement in statements() for action in listed(statement["Action"]) if "*" in action] == []


def test_policies_name_resources_wherever_aws_knows_any() -> None:
    unscoped = [(n, action) for n, s in statements() if "*" in listed(s["Resource"]) for action in listed(s["Action"])]

    assert [entry for entry in unscoped if not UNSCOPABLE.fullmatch(entry[1])] == []


def test_workers_accept_no_connection_and_no_unsigned_metadata_request() -> None:
    launch = RESOURCES["WorkerLaunchTemplate"]["Properties"]["LaunchTemplateData"]

    assert "SecurityGroupIngress" not in RESOURCES["WorkerSecurityGroup"]["Properties"]
    assert launch["SecurityGroupIds"] == [{"Fn::GetAtt": ["WorkerSecurityGroup", "GroupId"]}]
    assert launch["MetadataOptions"]["HttpTokens"] == "required"
    assert launch["MetadataOptions"]["InstanceMetadataTags"] == "enabled"
    assert all(mapping["Ebs"]["Encrypted"] for mapping in launch["BlockDeviceMappings"])
    assert launch["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert "InstanceMarketOptions" not in launch


def test_api_has_explicit_routes_wants_authorisation_by_default_and_is_throttled() -> None:
    route = RESOURCES["HttpApiRoute"]["Properties"]
    stage = RESOURCES["HttpApiStage"]["Properties"]

    assert "AWS::Serverless::HttpApi" not in {resource["Type"] for resource in RESOURCES.values()}
    assert TEMPLATE["Parameters"]["ApiAuth"]["Default"] == "iam"
    assert route["AuthorizationType"] == {
        "Fn::If": ["IamAuth", "AWS_IAM", {"Fn::If": ["JwtAuth", "JWT", {"Fn::If": ["ApiKeyAuth", "CUSTOM", "NONE"]}]}]
    }
    assert {"ThrottlingRateLimit", "ThrottlingBurstLimit"} <= set(stage["DefaultRouteSettings"])


def test_console_has_an_open_page_that_is_throttled_and_data_routes_that_are_authorised_like_the_api() -> None:
    routes = {properties["RouteKey"]: properties for properties in of_type("AWS::ApiGatewayV2::Route").values()}
    stage = RESOURCES["HttpApiStage"]
    open_routes = {key for key, properties in routes.items() if properties["AuthorizationType"] == "NONE"}

    assert open_routes == {"GET /console", "GET /console/{file}"} == set(stage["Properties"]["RouteSettings"])
    assert set(stage["DependsOn"]) == {"ConsolePageRoute", "ConsoleFileRoute"}
    for key in ("GET /v2/console/{view}", "PUT /v2/console/parameters/{name}"):
        for name in ("AuthorizationType", "AuthorizerId"):
            assert routes[key][name] == routes["$default"][name]
    assert routes["$default"]["Target"] != routes["GET /v2/console/{view}"]["Target"]


def test_alarms_watch_metrics_that_the_code_writes_under_the_dimension_it_writes() -> None:
    own = [properties for properties in of_type("AWS::CloudWatch::Alarm").values() if properties["Namespace"] == telemetry.NAMESPACE]
    written = {value for name, value in vars(telemetry).items() if name.isupper()}

    assert {properties["MetricName"] for properties in own} <= written
    assert {"ForecastsProduced", "ForecastHistoryAge", "ForecastCalibrationError"} <= {properties["MetricName"] for properties in own}
    assert all(properties["Dimensions"] == [{"Name": "service", "Value": {"Ref": "AWS::StackName"}}] for properties in own)
    assert TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"] == {"Ref": "AWS::StackName"}


def test_template_fits_what_cloudformation_takes() -> None:
    # From S3; inline the limit is 51,200 bytes, which is why the deployer uploads it.
    assert len((REPOSITORY / "template.yaml").read_bytes()) < 1_000_000
    assert len(RESOURCES) < 500
    assert len(TEMPLATE["Parameters"]) < 200
