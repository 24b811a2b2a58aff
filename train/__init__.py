"""Order-varied supervised fine-tuning: the same data, model and steps K times, only the order differs.

sft            trains the K orders: the file to read first; `trainer` is TRL's SFTTrainer on explicit permutations
orders         the order strategies, pure functions; `order_file` reads the user's own, `balance` judges them
samples        records made into samples by `templates`; `tokenized`: the samples as trained on, the orders over them
sft_config     the `sft` section; `lora` the `lora` section; `base_model` what each order starts from
callbacks      what happens between steps: order check, saves, progress; `checkpointing`: when to save, how to resume
order_record   order.json and permutations.safetensors, as they are written beside a sub-model
distributed    several processes that train one order together; `ray_executor` places the orders on a Ray cluster
"""
