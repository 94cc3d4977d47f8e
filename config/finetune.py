"""Train existing weights on other text: the quickstart's model learns from your text.

    python prepare_data.py --source=PATH --name=notes --tokenizer=data/python
    python train.py config/finetune.py --data=data/notes

Hardware: 2 CPU cores; a GPU is used if there is one.
Time:     27 seconds of training.
Expected: on tiny Shakespeare, after the quickstart: val_loss from 6.46 to 4.43, val_bpb from 4.05
          to 2.78.

The shape of the model comes with the weights. For GPT-2's weights type --init_from=gpt2, and
prepare the data with --tokenizer=gpt2.
"""

init_from = "out/quickstart"
data = "data/notes"

# A tenth of the rates of training from random weights, so that the model does not forget.
muon_lr = 0.002
embed_lr = 0.03
head_lr = 0.001
scalar_lr = 0.002
# With --optimizer=adamw type --learning_rate=3e-5.

warmup = 0.05
decay = 0.95
final_lr = 0.0
batch_tokens = 4096
max_steps = 200
eval_interval = 50
