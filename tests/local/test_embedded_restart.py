"""The embedded AWS can be stopped and started with its state kept, at the same address."""

from __future__ import annotations

from pathlib import Path

import boto3

from local.embedded_aws import start_embedded_aws
from local.processes import ProcessLedger


def test_queues_tables_and_objects_are_there_again_after_a_restart(tmp_path: Path) -> None:
    aws = start_embedded_aws(ledger=ProcessLedger(tmp_path / "processes.json"), work_dir=tmp_path, keep_state=True)
    try:
        place = {"endpoint_url": aws.endpoint_url, "region_name": "us-east-1"}
        sqs, dynamodb, s3 = (boto3.client(service, **place) for service in ("sqs", "dynamodb", "s3"))  # type: ignore[call-overload]
        url = sqs.create_queue(QueueName="work")["QueueUrl"]
        sqs.send_message(QueueUrl=url, MessageBody="accepted")
        key = {"AttributeName": "pk", "KeyType": "HASH"}
        dynamodb.create_table(
            TableName="results",
            KeySchema=[key],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        dynamodb.put_item(TableName="results", Item={"pk": {"S": "request"}, "answer": {"B": b"\x00\xff"}})
        s3.create_bucket(Bucket="artefacts")
        s3.put_object(Bucket="artefacts", Key="models/digits.pt", Body=b"weights")

        aws.restart()

        assert [message["Body"] for message in sqs.receive_message(QueueUrl=url)["Messages"]] == ["accepted"]
        assert dynamodb.scan(TableName="results")["Items"] == [{"pk": {"S": "request"}, "answer": {"B": b"\x00\xff"}}]
        assert s3.get_object(Bucket="artefacts", Key="models/digits.pt")["Body"].read() == b"weights"
    finally:
        aws.stop()
