"""Tasks beyond the three of the façade, and examples of tokens from what people have: chats, pairs, choices, samples.

Data are functions to `Examples`; where the loss is that of a causal language model, `LanguageModelling` is the task.

    train = tasks.chats(conversations, tokenizer)                      # loss on the assistant's turns
    queries = tasks.choices(prompts, options, right, tokenizer)
    factors.measuring(tasks.Choice()).score(queries)                   # log-odds of the right option
"""

from .chats import chats as chats
from .encoder_decoder import EncoderDecoder as EncoderDecoder
from .encoder_decoder import sequence_pairs as sequence_pairs
from .masked import MaskedLanguageModelling as MaskedLanguageModelling
from .masked import masked as masked
from .measured import Choice as Choice
from .measured import Measured as Measured
from .measured import Pooled as Pooled
from .measured import Reward as Reward
from .packing import packed as packed
from .preferences import DPO as DPO
from .preferences import with_reference as with_reference
from .text import choices as choices
from .text import classified as classified
from .text import one_token_each as one_token_each
from .text import prompted as prompted
from .text import samples as samples
from .zero_shot import ZeroShot as ZeroShot
