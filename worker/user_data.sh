#!/bin/bash
# Second half of a worker's user data: the launch template's first half has unpacked the bundle this file came in, and
# written the stack's names to worker.env. Adds who this instance is, installs what the image lacks, starts the unit.
set -euo pipefail
# An instance that cannot start must not go on costing money: its shutdown behaviour is to terminate.
trap 'echo "worker set-up failed at line $LINENO" >&2; shutdown -h now' ERR

readonly HOME_DIR=/opt/markserve ENVIRONMENT=/etc/markserve/worker.env
readonly METADATA=http://169.254.169.254/latest
# PyPI's torch is built for CUDA: gigabytes that only a GPU has a use for.
torch_index=(--extra-index-url https://download.pytorch.org/whl/cpu)
if [[ -e /dev/nvidia0 ]]; then torch_index=(); fi
readonly torch_index

token=$(curl -sSf -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 300" "$METADATA/api/token")
metadata() {
  curl -sSf --retry 5 -H "X-aws-ec2-metadata-token: $token" "$METADATA/meta-data/$1"
}

model=$(metadata tags/instance/markserve:model)
purpose=$(metadata tags/instance/markserve:purpose)
instance_id=$(metadata instance-id)
instance_type=$(metadata instance-type)
cat >> "$ENVIRONMENT" <<EOT
MARKSERVE_MODEL=$model
MARKSERVE_PURPOSE=$purpose
MARKSERVE_INSTANCE_ID=$instance_id
MARKSERVE_INSTANCE_TYPE=$instance_type
EOT

# An image with the virtual environment baked in skips the download of torch, which is most of a launch.
if [[ ! -x $HOME_DIR/venv/bin/python ]]; then
  dnf install -y -q python3.12 python3.12-pip
  python3.12 -m venv "$HOME_DIR/venv"
fi
"$HOME_DIR/venv/bin/pip" install -q --disable-pip-version-check "${torch_index[@]}" "$HOME_DIR/layers/markserve[torch,onnx]"

id markserve &> /dev/null || useradd --system --home-dir "$HOME_DIR" --shell /sbin/nologin markserve
install -m 0644 "$HOME_DIR/worker/markserve-worker.service" /etc/systemd/system/
systemctl daemon-reload
systemctl enable --now markserve-worker.service
