"""Model runner with torch.export programs (.pt2), read without their pickles.

PyTorch's own loader unpickles whatever an archive marks so. Here an archive that needs that is refused, and the example
inputs, which are always pickled and serve nobody, are left out before PyTorch sees the archive.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import msgspec
import torch
from torch.export.passes import move_to_device_pass

from markserve.adapters.torch_runner import DATATYPES, TorchRunner, default_device, error_text
from markserve.artefacts import check_digest
from markserve.core.types import Tier
from markserve.errors import ConfigurationError
from markserve.messages import ModelRecord, TensorSpec

MAX_UNPACKED_BYTES = 8 * 1024**3


class TorchExportRunner(TorchRunner):
    """`StackRunner` over an exported program."""

    @classmethod
    def load(
        cls, record: ModelRecord, artefact: bytes, threads: int = 1, *, device: str | None = None, tier: Tier = Tier.WORKER
    ) -> TorchExportRunner:
        """Load a registered artefact; a record without inputs gets those that the program states.

        Raises
        ------
        ConfigurationError
            If the bytes are not the registered ones, not a torch.export archive, or need a pickle.
        """
        check_digest(record, artefact)
        torch.set_num_threads(threads)
        device = device or default_device()
        safe = _without_pickles(artefact, record.artefact_key)
        try:
            program = torch.export.load(io.BytesIO(safe))
            if not record.inputs:
                record = msgspec.structs.replace(record, inputs=_stated_inputs(program))
            module = moved(program, device).module()
        except (RuntimeError, ValueError, KeyError, AssertionError, OSError) as error:
            raise ConfigurationError(f"{record.artefact_key} cannot be loaded as a torch.export archive: {error_text(error)}") from error
        return cls(module, record, device=device, tier=tier)


def moved(program: Any, device: str) -> Any:
    """Return the program on a device.

    `module().to(device)` would move the weights alone: what the graph itself creates, such as positions or masks, stays on the device it
    was exported on.
    """
    return program if devices(program) <= {device} else move_to_device_pass(program, device)


def devices(program: Any) -> set[str]:
    """Devices that a program's weights, constants and graph name."""
    tensors = [value for value in (*program.state_dict.values(), *program.constants.values()) if isinstance(value, torch.Tensor)]
    found = {str(tensor.device) for tensor in tensors}
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            value = node.meta.get("val")
            named = [one for one in node.args if isinstance(one, torch.device)]
            named += [node.kwargs.get("device"), value.device if isinstance(value, torch.Tensor) else None]
            if node.target is torch.ops.aten.to.device:
                named.append(node.args[1])
            found |= {str(one) for one in named if one is not None}
    return found


def _without_pickles(artefact: bytes, key: str) -> bytes:
    """Return the archive without example inputs.

    Raises
    ------
    ConfigurationError
        If it is no such archive, or a part of it can only be read by unpickling.
    """
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(artefact)) as archive, zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as safe:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
                raise ConfigurationError(f"{key} unpacks to more than {MAX_UNPACKED_BYTES} bytes")
            if not any(entry.filename.endswith("/archive_format") for entry in entries):
                raise ConfigurationError(f"{key} is no torch.export archive of PyTorch 2.8 or newer; save it again")
            for entry in entries:
                content = archive.read(entry)
                _refuse_pickle(entry.filename, content, key)
                safe.writestr(entry.filename, b"" if "/data/sample_inputs/" in entry.filename else content)
    except (zipfile.BadZipFile, msgspec.MsgspecError, NotImplementedError) as error:
        raise ConfigurationError(f"{key} is not a torch.export archive: {error}") from error
    return copy.getvalue()


def _refuse_pickle(name: str, content: bytes, key: str) -> None:
    if "/data/sample_inputs/" in name:
        return
    if name.endswith((".pt", ".pth", ".pkl")):
        raise ConfigurationError(f"{key}: {name} is a pickle, which is not loaded; export weights as plain contiguous tensors")
    if not name.endswith("_config.json"):
        return
    config: Any = msgspec.json.decode(content)
    pickled = [part for part, meta in config.get("config", {}).items() if meta.get("use_pickle")]
    if pickled:
        raise ConfigurationError(f"{key}: {', '.join(pickled)} would have to be unpickled, which is not done; make them plain tensors")


def _stated_inputs(program: Any) -> tuple[TensorSpec, ...]:
    names = list(program.graph_signature.user_inputs)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = []
    for name in names:
        value = values.get(name)
        if not isinstance(value, torch.Tensor) or value.dtype not in DATATYPES:
            raise ValueError(f"input '{name}' is no tensor")
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        specs.append(TensorSpec(name=name, datatype=DATATYPES[value.dtype], shape=shape))
    return tuple(specs)
