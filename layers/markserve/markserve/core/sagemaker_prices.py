"""What SageMaker real-time endpoints charge for an instance type, against EC2's price for the same hardware.

Ratios rather than prices are kept: AWS lists `ml.X` at a fixed ratio to X, by family and generation of the list, and every
known price below agrees with its ratio to the rounding of the list.

- `launch`: 1.40 x EC2 for CPU and single-generation GPU types. Source: syne-tune 0.10.0 (AWS authors), instance-types-cost.csv,
  28 CPU types at 1.396 to 1.402, such as ml.c5.xlarge $0.238 against $0.17. It is what MArk (2019) compared with.
- `current`: after the cuts of 2020-12 and 2021-04, 1.20 x EC2 for CPU types, 1.25 / 1.20 / 1.15 for small, middle and large p2 and
  p3. Sources: the same file for p2 and p3 (ml.p3.2xlarge $3.825 against $3.06, ml.p3.16xlarge $28.152 against $24.48), and
  third-party tables for c5 and m5 (ml.c5.large $0.102 against $0.085, ml.m5.xlarge $0.23 against $0.192). g4dn stayed at 1.40 in
  both lists.

`current` is used unless told otherwise: it is what one pays today, and the lower of the two, so it favours SageMaker.
"""

from __future__ import annotations

from typing import Literal

Generation = Literal["current", "launch"]

LAUNCH_RATIO = 1.40
FALL_BACK_RATIO = 1.20
"""Of a type without a listed price: the ratio of the current CPU list, the lowest that whole families have. Types that
SageMaker does not host at all (burstable t3, for one) are let in at it too, which is generous."""
CURRENT_RATIOS: dict[str, float] = {
    "c5": 1.20,
    "m5": 1.20,
    "g4dn": 1.40,
    "g5": 1.40,
    "c4": 1.40,
    "m4": 1.40,
    "c5n": 1.40,
    "p2.xlarge": 1.25,
    "p2.8xlarge": 1.20,
    "p2.16xlarge": 1.15,
    "p3.2xlarge": 1.25,
    "p3.8xlarge": 1.20,
    "p3.16xlarge": 1.15,
    "p3dn.24xlarge": 1.15,
    "p4d.24xlarge": 1.716,
}
"""By type, else by family. g5: ml.g5.xlarge $1.408 against $1.006 (third-party table); c4, m4, c5n: only launch-era prices are known."""


def sagemaker_price_usd_per_hour(instance_type: str, ec2_usd_per_hour: float, generation: Generation = "current") -> tuple[float, str]:
    """Price of `ml.<instance_type>`, and where it comes from.

    >>> sagemaker_price_usd_per_hour("c5.large", 0.085)[0]
    0.102
    >>> sagemaker_price_usd_per_hour("c5.xlarge", 0.17, "launch")
    (0.238, '1.40 x EC2 (launch-era list)')
    """
    if generation == "launch":
        return round(LAUNCH_RATIO * ec2_usd_per_hour, 4), f"{LAUNCH_RATIO:.2f} x EC2 (launch-era list)"
    ratio = CURRENT_RATIOS.get(instance_type, CURRENT_RATIOS.get(instance_type.split(".")[0]))
    if ratio is None:
        return round(FALL_BACK_RATIO * ec2_usd_per_hour, 4), f"{FALL_BACK_RATIO:.2f} x EC2 (fall-back, no listed price)"
    return round(ratio * ec2_usd_per_hour, 4), f"{ratio:.2f} x EC2 (current list)"
