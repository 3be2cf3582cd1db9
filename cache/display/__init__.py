"""Tables, heat maps, charts and pages, from plain values."""

from .charts import against_compute as against_compute
from .charts import bars as bars
from .charts import tails as tails
from .figures import axes_or_new as axes_or_new
from .figures import picture as picture
from .figures import strip as strip
from .heatmap import heat as heat
from .heatmap import shaded as shaded
from .interval import Interval as Interval
from .pages import Shown as Shown
from .pages import page as page
from .pages import render as render
from .pages import signed as signed
from .pages import write_page as write_page
from .tables import Cell as Cell
from .tables import facts as facts
from .tables import markdown as markdown
from .tables import number as number
from .tables import table as table
from .tables import written as written
