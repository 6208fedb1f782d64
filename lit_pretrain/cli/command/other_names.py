"""Other names: what users of other frameworks, or of none, call our options."""

from collections.abc import Iterable

from lit_pretrain.errors import nearest

# Right: how the option is called in Hugging Face's Trainer and TRL, nanoGPT, nanochat, LitGPT,
# Megatron-LM, torchtitan, torchtune, axolotl, llama.cpp and Lightning. Left: how its name ends
# here. One word may stand for several options; a verb answers with those that it has.
OTHER_NAMES: dict[str, str] = {
    # length, place and rhythm of a run
    "max_steps": "steps num_steps total_steps training_steps num_training_steps train_steps iters"
    " max_iters train_iters num_iterations iterations updates",
    "max_epochs": "epochs epoch num_epochs num_train_epochs n_epochs train_epochs",
    "max_tokens": "tokens train_tokens total_tokens num_tokens token_budget",
    "max_flops": "flops compute budget target_flops",
    "trainer.max_time": "time max_time_hours time_limit timeout",
    "runs": "out_dir output_dir save_dir log_dir default_root_dir run_dir runs_dir",
    "name": "run_name exp_name experiment experiment_name run_id output_name",
    "resume": "resume_from_checkpoint resume_from ckpt_path load checkpoint resume_path"
    " auto_resume",
    "from": "init_from model_name_or_path model_name pretrained base_model base parent"
    " finetune_from pretrained_model_name_or_path model_path checkpoint ckpt init_checkpoint",
    "log_every": "logging_steps log_interval log_every_n_steps log_freq log_steps",
    "validate_every": "eval_every eval_interval eval_steps val_interval val_every eval_freq"
    " val_check_interval validation_interval eval_iters_interval",
    "checkpoint_every": "save_every save_steps save_interval checkpoint_interval ckpt_every"
    " checkpoint_freq save_freq",
    "keep_checkpoints": "save_total_limit save_top_k keep_last max_checkpoints",
    "evaluate_tasks": "tasks eval_tasks benchmarks",
    "sample_prompts": "prompts",
    # data
    "data.path": "dataset data_dir data_path dataset_path train_data dataset_name train_file"
    " train_path",
    "data.seq_len": "block_size context_length context_len ctx_len ctx max_seq_len max_seq_length"
    " sequence_length max_length seq_length seqlen n_ctx context_size cutoff_len sequence_len",
    "data.micro_batch_size": "batch_size mbs per_device_train_batch_size device_batch_size"
    " train_batch_size local_batch_size per_gpu_batch_size bs",
    "data.global_batch_tokens": "batch_size global_batch_size total_batch_size batch_tokens"
    " gradient_accumulation_steps accumulate_grad_batches grad_accum grad_accumulation"
    " gradient_accumulation accumulation_steps tokens_per_step tokens_per_batch bs",
    "data.global_batch_rows": "batch_size global_batch_size total_batch_size bs"
    " gradient_accumulation_steps accumulate_grad_batches grad_accum accumulation_steps"
    " batch_schedule",
    "data.batch_schedule": "rampup_batch_size batch_size_warmup batch_warmup batch_size_schedule"
    " batch_ramp batch_size_ramp batch_rampup",
    "data.num_workers": "workers dataloader_num_workers data_workers num_loader_workers",
    "data.weights": "mixture data_mix mix proportions mixing_weights sampling_weights",
    "data.val_tokens": "eval_iters eval_tokens limit_val_batches max_eval_samples",
    "data.sources": "dataset datasets train_file rows",
    # network
    "net.n_layer": "n_layers num_layers layers num_hidden_layers depth num_blocks",
    "net.width": "n_embd d_model hidden_size dim embed_dim hidden_dim emb_dim model_dim"
    " embedding_dim",
    "net.n_head": "n_heads num_heads heads num_attention_heads nhead",
    "net.n_kv_head": "n_kv_heads num_kv_heads num_key_value_heads num_query_groups n_query_groups",
    "net.ffn_width": "intermediate_size d_ff ffn_hidden_size mlp_dim n_inner ffn_dim",
    "net.max_seq_len": "max_position_embeddings n_positions block_size n_ctx context_length",
    "net.tie_embeddings": "tie_word_embeddings tied_embeddings weight_tying",
    "net.norm": "normalization norm_type",
    "net.activation": "hidden_act act_fn activation_function mlp_type",
    "net.dropout": "attention_dropout resid_pdrop hidden_dropout p_dropout",
    "net.vocab_size": "padded_vocab_size n_vocab",
    # optimization
    "optimizer.matrix_lr": "lr learning_rate max_lr peak_lr base_lr muon_lr",
    "optimizer.lr": "learning_rate max_lr peak_lr base_lr lr_max",
    "optimizer.weight_decay": "wd decay_weight",
    "optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.eps": "adam_epsilon epsilon adam_eps",
    "model.optimizer": "optim optimizer_type opt optimizer_name",
    "model.clip_norm": "max_grad_norm grad_clip gradient_clip_val clip_grad clip gradient_clipping"
    " grad_clip_norm clip_grad_norm max_norm gradient_clip",
    "schedule.kind": "lr_scheduler lr_scheduler_type scheduler lr_schedule lr_decay_style"
    " scheduler_type",
    "schedule.warmup": "warmup_steps warmup_iters warmup_ratio num_warmup_steps lr_warmup_steps"
    " lr_warmup_iters warmup_fraction warmup_tokens",
    "schedule.final": "min_lr final_lr min_lr_ratio lr_min end_lr",
    "schedule.decay": "decay_steps lr_decay_iters cooldown decay_iters num_decay_steps",
    "model.objective": "loss loss_fn loss_type criterion",
    "model.activation_checkpointing": "gradient_checkpointing grad_checkpointing remat recompute"
    " activation_checkpoint",
    "model.compile": "torch_compile use_compile",
    "model.float8": "fp8 use_fp8 enable_fp8 float8_recipe recipe_name fp8_recipe fp8_format"
    " enable_float8 fp8_training",
    "model.seed": "random_seed manual_seed",
    "data.seed": "random_seed data_seed shuffle_seed",
    "adapter.rank": "lora_r lora_rank r",
    "adapter.alpha": "lora_alpha",
    "model.adapter": "lora qlora peft use_lora load_in_4bit",
    # machine
    "trainer.devices": "gpus n_gpu n_gpus num_gpus ngpus nproc_per_node num_processes world_size"
    " num_devices cuda_devices",
    "trainer.num_nodes": "nodes nnodes n_nodes num_machines",
    "trainer.accelerator": "device device_type use_cpu no_cuda backend",
    "trainer.precision": "dtype bf16 fp16 fp32 mixed_precision amp torch_dtype half",
    "trainer.strategy": "fsdp ddp distributed distributed_strategy parallel",
    "trainer.logger": "wandb report_to loggers tensorboard tracker use_wandb",
    "trainer.profiler": "profile",
    # writing text, looking at runs, preparing
    "run": "model checkpoint ckpt ckpt_path model_path checkpoint_path path model_name_or_path"
    " run_dir checkpoint_dir",
    "max_new_tokens": "max_tokens max_length n_predict num_tokens length max_gen_len gen_length"
    " max_completion_tokens",
    "temperature": "temp",
    "top_k": "topk",
    "top_p": "topp nucleus",
    "stop": "stop_sequences stop_words eos",
    "device": "accelerator gpu cuda use_cpu",
    "system": "system_prompt system_message",
    "out": "output output_dir out_dir output_path destination dst save_dir output_prefix",
    "sources": "input inputs input_dir files dataset corpus text data data_path path",
    "workers": "num_proc num_workers jobs processes num_processes threads n_jobs"
    " preprocessing_workers",
    "splits.validation": "val_split validation_split val_fraction val_size eval_fraction test_size",
    "splits.test": "test_split test_fraction test_size",
    "tokenizer.path": "tokenizer_path tokenizer_name tokenizer_file tokenizer_name_or_path"
    " tokenizer_model",
    "tokenizer.vocab_size": "num_merges n_vocab vocabulary_size",
    "filters": "filter quality_filters",
    "dedup": "deduplicate deduplication minhash",
    "price": "cost price_per_hour hourly_rate",
    "tasks": "task benchmarks",
    "limit": "num_samples max_samples limit_samples",
    "port": "http_port",
    "host": "address bind",
}  # fmt: skip
_MEANT: dict[str, list[str]] = {}
for _ending, _words in OTHER_NAMES.items():
    for _word in _words.split():
        _MEANT.setdefault(_word, []).append(_ending)


def exactly_meant(name: str, known: Iterable[str]) -> list[str]:
    """Return the options that end in a name.

    If there are none, return those whose last part is the name's, or is called so elsewhere.

    Args:
        name: What was given: `lr`, `optimizer.lr`, `n_layers`.
        known: The names of options.
    """
    known = list(known)
    name = name.strip("-").replace("-", "_").lower()
    last = name.rpartition(".")[2]
    for endings in ([name], [last], _MEANT.get(last, [])):
        found = [option for ending in endings for option in known if _ends_in(option, ending)]
        if found:
            return sorted(dict.fromkeys(found), key=lambda option: option.count("."))
    return []


def meant_options(name: str, known: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return the options that a name most likely meant, the likeliest first.

    Where it means none exactly, those count that are spelt much like it.

    Args:
        name: What was given, without dashes.
        known: The names of all options of the verb.
        limit: Return at most this many.
    """
    known = list(known)
    # Of a name with its groups, a slip in one letter is likelier than an option of another group.
    slip = nearest(name, known, cutoff=0.95) if "." in name and name not in known else []
    found = slip or exactly_meant(name, known) or nearest(name, known, cutoff=0.75)
    if not found:
        found = [
            option
            for word in nearest(name.rpartition(".")[2], _MEANT, cutoff=0.85)
            for option in exactly_meant(word, known)
        ]
    return found[:limit]


def _ends_in(option: str, ending: str) -> bool:
    return option == ending or option.endswith(f".{ending}")
