"""Rules for simple statements, imports and compound blocks.

See `snippets.py` for the notation.
"""

_SIMPLE = {
    "stmt": """
<assign>
<assign>
<assign>
<effect>
<effect>
<effect>
<commented>
""",
    "assign": """
<n_num> = <num>
<n_num> = <num>
<n_text> = <text>
<n_text> = <text>
<n_list> = <list>
<n_list> = <list>
<n_map> = <map>
<n_map> = <map>
<n_bool> = <bool>
<n_bool> = <boolean>
<n_obj> = <obj>
<n_array> = <array>
<n_array> = <array>
<n_frame> = <frame>
<n_list> = <set>
<n_list> = <tuple>
<n_num>, <n_num> = <tuple_pair>
<n_num>, *<n_list> = <list>
<n_num>: int = <num>
<n_num>: float = <num>
<n_list>: list[<type>] = <list>
<n_map>: dict[str, <type>] = <map>
<n_text>: str = <text>
<n_func:f> = lambda <n_it:v>: <elem>
<upper>_<upper> = <int>
<upper> = <any>
""",
    "tuple_pair": """
<num>, <num>
divmod(<num>, <int>)
<v_array>.shape
<call>
""",
    "effect": """
<v_num> += <num>
<v_num> -= <num>
<v_num> *= <float>
<v_text> += <text>
<v_map>[<text>] = <any>
<v_map>["<noun>"] = <num>
<v_map>[<v_text>] += <digit>
<v_obj>.<noun> = <any>
<v_list>.append(<any>)
<v_list>.append((<v_any>, <num>))
<v_list>.extend(<list>)
<v_list>.sort(key=lambda <n_it:v>: <pick>)
<v_list>.insert(<digit>, <num>)
<v_map>.update(<map>)
<v_map>.setdefault(<v_text>, []).append(<num>)
<v_map>.pop("<noun>", None)
print(<text>)
print(<fstring>)
print("<words>", <num>)
print(<v_any>, <v_any>, sep="<char>")
logging.info(<fstring>)
logger.<level>("<words>: %s", <v_text>)
logger.warning(<fstring>)
assert <bool>
assert <bool>, "<words>"
assert <num> == <int>, <fstring>
assert <func>(<num>) == <num>
<call>
<call>
del <v_map>[<text>]
parser.add_argument("--<noun>", type=int, default=<int>)
parser.add_argument("--<noun>-<noun>", default="<words>", help="<words>")
<v_array>.backward()
<v_array>[<v_num>] = <num>
<v_array>[<v_array> < <float>] = <int>
<v_frame>["<noun>"] = <v_frame>["<noun>"] * <num>
<v_frame>["<noun>"] = <v_frame>["<noun>"].apply(lambda <n_it:v>: <elem>)
<v_frame>.to_csv("<file>", index=False)
Path("<file>").write_text(<text>)
time.sleep(<float>)
random.seed(<int>)
os.makedirs(<text>, exist_ok=True)
plt.plot(<v_list>, <list>)
json.dump(<map>, <v_obj>)
subprocess.run(["<verb>", "<file>"], check=True)
""",
    "commented": """
# <verb> the <adjective> <noun>
<assign>
---
# <plural> per <noun>
<assign>
---
# skip <adjective> <plural>
<loop>
---
<assign>  # <adjective> <noun>
---
<effect>  # <noun> <int>
""",
    "import": """
import <module>
---
import <module>
import <module>
---
import numpy as np
---
import torch
from torch import nn
---
import pandas as pd
---
import torch.nn.functional as F
---
import matplotlib.pyplot as plt
---
from pathlib import Path
---
from <module_member>
---
from <module_member>
---
from <noun>.<plural> import <class>
---
from <noun>.<noun>_utils import <func>, <func>
---
from .<noun> import <class>, <class>
---
from .<plural> import <func> as <verb>_<noun>
---
import <noun>_<noun> as <char_name>
---
from <noun> import <func>
""",
    "module_member": """
collections import Counter, defaultdict
dataclasses import dataclass, field
typing import Any, <typing_name>
functools import lru_cache, partial
itertools import <itertool>, <itertool>
datetime import datetime, timedelta
concurrent.futures import ThreadPoolExecutor
contextlib import contextmanager
torch.utils.data import DataLoader, Dataset
sklearn.linear_model import LogisticRegression
enum import Enum
abc import ABC, abstractmethod
math import <math_name>, <math_name>
""",
}
_BLOCKS = {
    "body": """
<stmt>
---
<stmt>
<stmt>
---
<stmt>
<stmt>
---
<block>
---
<stmt>
<block>
""",
    "body_leaf": """
<stmt>
---
<stmt>
<stmt>
""",
    "block": """
<loop>
<loop>
<branch>
<branch>
<guarded>
<context>
""",
    "loop": """
for <n_obj> in <list>:
    <body>
---
for <n_text> in <list>:
    <body>
---
for <n_num> in range(<num>):
    <body>
---
for <n_num> in range(<digit>, <num>, <digit>):
    <body>
---
for <n_num>, <n_text> in enumerate(<list>, start=<bit>):
    <body>
---
for <n_text>, <n_num> in <map_base>.items():
    <body>
---
for <n_num>, <n_text> in zip(<v_list>, <list>):
    <body>
---
for <n_it:v> in <list>:
    if <pred>:
        continue
    <body>
---
for <n_it:v> in <list>:
    if <pred>:
        <stmt>
        break
else:
    <stmt>
---
while <bool>:
    <body>
---
while True:
    <body>
    if <bool>:
        break
---
while <v_list>:
    <n_obj> = <v_list>.pop()
    <body>
""",
    "branch": """
if <bool>:
    <body>
---
if <bool>:
    <body>
---
if <bool>:
    <body>
else:
    <body>
---
if <bool>:
    <stmt>
elif <bool>:
    <stmt>
else:
    <stmt>
---
if not <v_list>:
    raise ValueError(<message>)
---
if <bool>:
    raise <exception>(<message>)
---
if (<n_obj:m> := <call>) is not None:
    <stmt>
---
match <v_text>:
    case "<noun>":
        <stmt>
    case _:
        <stmt>
""",
    "message": """
"<words>"
<fstring>
""",
    "guarded": """
try:
    <body>
except <exception>:
    <stmt>
---
try:
    <n_num> = <num>
except (<exception>, <exception>):
    <n_num> = <int>
---
try:
    <stmt>
except <exception> as error:
    logger.error("<words>: %s", error)
---
try:
    <stmt>
except <exception> as exc:
    raise RuntimeError(<message>) from exc
---
try:
    <stmt>
finally:
    <v_obj>.close()
---
try:
    import <module>
except ImportError:
    <stmt>
""",
    "context": """
with open(<text>) as <handle:h>:
    <n_map> = json.load(<=h>)
---
with open(<text>, "w", encoding="utf-8") as <handle:h>:
    <=h>.write(<text>)
---
with open("<file>") as <handle:h>:
    <n_list> = [<plain_text> for <n_it:v> in <=h>]
---
with open(<v_text>, newline="") as <handle:h>:
    for <n_text> in <=h>:
        <body>
---
with torch.no_grad():
    <n_array> = <v_obj>(<v_array>)
---
with <class>(<text>) as <n_obj>:
    <body>
---
with <v_obj>.lock:
    <stmt>
---
with pytest.raises(<exception>):
    <call>
---
with ThreadPoolExecutor(max_workers=<int>) as <n_obj:p>:
    <n_list> = list(<=p>.map(<func>, <v_list>))
""",
}
STATEMENT_RULES = _SIMPLE | _BLOCKS
