"""Documents of the shape that the Price List API answers with."""

from __future__ import annotations

import json
from typing import Any

PUBLISHED = "2026-11-20T21:11:32Z"
ON_DEMAND_TERM, HOUR = "JRTCKXETXF", "6YS6EN2CT7"


def an_on_demand_term(sku: str, instance_type: str, price: str, *, currency: str = "USD", unit: str = "Hrs") -> dict[str, Any]:
    rate = f"{sku}.{ON_DEMAND_TERM}.{HOUR}"
    return {
        "priceDimensions": {
            rate: {
                "unit": unit,
                "endRange": "Inf",
                "description": f"${price} per On Demand Linux {instance_type} Instance Hour",
                "appliesTo": [],
                "rateCode": rate,
                "beginRange": "0",
                "pricePerUnit": {currency: price},
            }
        },
        "sku": sku,
        "effectiveDate": "2026-11-01T00:00:00Z",
        "offerTermCode": ON_DEMAND_TERM,
        "termAttributes": {},
    }


def a_reserved_term(sku: str) -> dict[str, Any]:
    """A year, partly upfront: a fee once, and a lower price by the hour."""
    code = f"{sku}.HU7G6KETJZ"
    return {
        "priceDimensions": {
            f"{code}.2TG2D8R56U": {
                "unit": "Quantity",
                "description": "Upfront Fee",
                "appliesTo": [],
                "rateCode": f"{code}.2TG2D8R56U",
                "pricePerUnit": {"USD": "227"},
            },
            f"{code}.{HOUR}": {
                "unit": "Hrs",
                "endRange": "Inf",
                "description": "Linux/UNIX (Amazon VPC), reserved instance applied",
                "appliesTo": [],
                "rateCode": f"{code}.{HOUR}",
                "beginRange": "0",
                "pricePerUnit": {"USD": "0.0260000000"},
            },
        },
        "sku": sku,
        "effectiveDate": "2026-11-01T00:00:00Z",
        "offerTermCode": "HU7G6KETJZ",
        "termAttributes": {"LeaseContractLength": "1yr", "OfferingClass": "standard", "PurchaseOption": "Partial Upfront"},
    }


def a_price_document(
    instance_type: str, price: str | None = "0.0850000000", *, published: str = PUBLISHED, currency: str = "USD", unit: str = "Hrs"
) -> str:
    """Write a product with its terms; without a price, the product alone is offered."""
    sku = "SKU" + instance_type.upper().replace(".", "").replace("-", "")
    terms: dict[str, Any] = {}
    if price is not None:
        term = an_on_demand_term(sku, instance_type, price, currency=currency, unit=unit)
        terms = {"OnDemand": {f"{sku}.{ON_DEMAND_TERM}": term}, "Reserved": {f"{sku}.HU7G6KETJZ": a_reserved_term(sku)}}
    document = {
        "product": {
            "productFamily": "Compute Instance",
            "attributes": {
                "instanceType": instance_type,
                "instanceFamily": "Compute optimized",
                "vcpu": "2",
                "memory": "4 GiB",
                "storage": "EBS only",
                "networkPerformance": "Up to 10 Gigabit",
                "operatingSystem": "Linux",
                "preInstalledSw": "NA",
                "licenseModel": "No License required",
                "tenancy": "Shared",
                "capacitystatus": "Used",
                "marketoption": "OnDemand",
                "operation": "RunInstances",
                "usagetype": f"BoxUsage:{instance_type}",
                "regionCode": "us-east-1",
                "location": "US East (N. Virginia)",
                "locationType": "AWS Region",
                "servicecode": "AmazonEC2",
                "servicename": "Amazon Elastic Compute Cloud",
                "currentGeneration": "Yes",
            },
            "sku": sku,
        },
        "serviceCode": "AmazonEC2",
        "terms": terms,
        "version": "20261120211132",
        "publicationDate": published,
    }
    return json.dumps(document)
