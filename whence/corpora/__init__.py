"""Data to work on: three corpora that need no network, and readers for one's own."""

from .biographies import biographies as biographies
from .biographies import stating as stating
from .corpus import Corpus as Corpus
from .corpus import query_examples as query_examples
from .digits import digits as digits
from .images import ImageReader as ImageReader
from .language_reference import language_reference as language_reference
from .models import biographies_model as biographies_model
from .models import reference_model as reference_model
from .sources import load as load
from .sources import load_queries as load_queries
from .vocabulary import Vocabulary as Vocabulary
