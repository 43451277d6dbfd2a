"""The embedded EC2: a moto server with spot prices that mean something.

Run as `python -m local.embedded_ec2` with moto's own arguments. moto prices every spot pool at 0.00001 USD; a planner
fed with that buys nothing but spot. Here each pool costs its type's list price less its typical spot saving.
"""

from __future__ import annotations

import sys
from typing import Any

from markserve.catalog import load_catalog


def price_spot_history(history: list[dict[str, Any]], prices_usd_per_hour: dict[str, float]) -> list[dict[str, Any]]:
    """Keep the pools of known types, at their price.

    >>> price_spot_history([{"InstanceType": "c5.large", "SpotPrice": "0.00001"}, {"InstanceType": "x"}], {"c5.large": 0.034})
    [{'InstanceType': 'c5.large', 'SpotPrice': '0.034000'}]
    """
    return [
        {**pool, "SpotPrice": f"{prices_usd_per_hour[pool['InstanceType']]:.6f}"}
        for pool in history
        if pool["InstanceType"] in prices_usd_per_hour
    ]


def main() -> None:
    """Serve until told to stop."""
    from moto.core.responses import ActionResult
    from moto.ec2.responses.spot_instances import SpotInstances
    from moto.server import main as serve

    prices = {entry.instance_type: entry.typical_spot_usd_per_hour for entry in load_catalog().entries}
    unpriced = SpotInstances.describe_spot_price_history

    def priced(self: Any) -> Any:
        return ActionResult({"SpotPriceHistory": price_spot_history(unpriced(self).result["SpotPriceHistory"], prices)})

    SpotInstances.describe_spot_price_history = priced
    serve(sys.argv[1:])


if __name__ == "__main__":
    main()
