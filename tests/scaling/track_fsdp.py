"""Tracks the peak of our network under FSDP2 with torch's FSDPMemTracker, without memory or a
second process; run by test_memory.py.

usage: python track_fsdp.py '{"net": {...}, "devices": 4, "rows": 2, "seq_len": 512,
"checkpointing": false}'
"""

import json
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.transformer import Transformer


def main(asked: dict) -> None:
    dist.init_process_group("fake", rank=0, world_size=asked["devices"], store=FakeStore())
    mesh = init_device_mesh("cpu", (asked["devices"],))
    Transformer.check_tokens = lambda self, tokens_BT: (
        None
    )  # reads values, and fake tensors have none
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("meta"):
            net = Transformer(ModelConfig(**asked["net"], attention="sdpa"))
        for module in net.modules():
            for name, p in list(module._parameters.items()):
                if p is not None:
                    module._parameters[name] = torch.nn.Parameter(torch.empty(p.shape))
            for name, b in list(module._buffers.items()):
                if b is not None:
                    module._buffers[name] = torch.empty(b.shape)
        net.checkpoint_activations(asked["checkpointing"])
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for block in net.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
        optimizer = torch.optim.AdamW(net.parameters(), foreach=False, fused=False)
        tokens_BT = torch.zeros(asked["rows"], asked["seq_len"], dtype=torch.int64)
        tracker = FSDPMemTracker(net, optimizer)
        tracker.track_inputs((tokens_BT,))
        with tracker:
            for step in range(2):
                logits_BTV = net.logits(net(tokens_BT)).float()
                loss = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT.flatten())
                del logits_BTV
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if step == 0:
                    tracker.reset_mod_stats()
        print(
            json.dumps(
                {"tracked": tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]}
            )
        )


main(json.loads(sys.argv[1]))
