"""Imported by processes that others are forked from: what every fork would otherwise read for itself.

Making a client has the default session read the API's description, megabytes of JSON, which it keeps. No client is used
before a fork, so none shares a connection.
"""

import os

import boto3

import markserve.runners
import markserve.wiring  # noqa: F401

for service in ("dynamodb", "events", "lambda", "s3", "sqs", "ssm"):
    boto3.client(service, region_name=os.environ.get("AWS_REGION", "us-east-1"))
