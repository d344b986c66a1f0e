"""Rules for the smallest pieces: literals, types, modules and fixed names, all without nesting."""

ATOM_RULES = {
    "char": ", . ; : - _ / # | + * = & ~".replace(" ", "\n"),
    "char_name": "a b c d e f g h k m n p q r s t u w".replace(" ", "\n"),
    "bit": "0\n1",
    "boolean": "True\nFalse",
    "operator": "+\n-\n*\n//\n%",
    "position": "0\n0\n1\n-1\n2\n-2\n3",
    "device": "cuda\ncpu\ncuda:0",
    "activation": "torch.relu\ntorch.tanh\nF.gelu\ntorch.sigmoid\nF.silu",
    "level": "debug\ninfo\nwarning\nerror",
    "ext": "txt\ncsv\njson\npng\npy\nlog\nmd\nyaml\npt\nnpy",
    "dateform": "%Y-%m-%d\n%H:%M\n%d.%m.%Y\n%Y%m%d",
    "itertool": "chain\nproduct\nislice\ncombinations\ngroupby\naccumulate\npairwise",
    "math_name": "sqrt\nlog\npi\nexp\nceil\nfloor\nsin\ncos\nhypot",
    "typing_name": "Protocol\nNamedTuple\nTypeVar\nClassVar\nLiteral\nCallable",
    "handle": "f\nf\nf\nhandle\nfh\nstream\nsource_file\nout",
    "file": """
<plural>.<ext>
<noun>_<int>.<ext>
data/<plural>.<ext>
<noun>/<adjective>_<noun>.<ext>
logs/<noun>-<year>-0<digit>.<ext>
""",
    "folder": """
/tmp/<noun>
data/<plural>
~/<noun>/<plural>
<noun>_<int>
/var/<noun>/<adjective>
""",
    "regex": r"""
\d+
\s+
[^a-z]+
(\w+)@(\w+)
\b<noun>\b
^<noun>_(\d{<digit>})
[A-Z]{<digit>,}
<noun>=(.*?);
""",
    "year": "19<digit>0\n19<digit><digit>\n200<digit>\n201<digit>\n202<digit>",
    "int": """
<digit>
<digit>
<digit>0
1<digit>
2<digit>
<digit>2
<digit>5
<digit><digit>
<digit>00
<digit>000
<digit><digit><digit>
<digit>_<digit>00
<power>
<power>
<year>
""",
    "digit": "1\n2\n2\n3\n3\n4\n5\n6\n7\n8\n9",
    "power": "16\n32\n64\n128\n256\n512\n1024\n4096\n0\n100",
    "float": """
0.<digit>
0.<digit>
0.<digit><digit>
0.0<digit>
<digit>.<digit>
<digit>.0
<digit>e-<digit>
<digit><digit>.<digit><digit>
0.00<digit>
""",
    "type": """
int
int
float
str
str
bool
bytes
list[int]
list[str]
list[<class>]
dict[str, int]
dict[str, Any]
dict[str, list[float]]
tuple[int, int]
tuple[str, ...]
set[str]
<class>
Path
np.ndarray
torch.Tensor
datetime
Callable[[int], str]
""",
    "exception": """
ValueError
ValueError
KeyError
TypeError
IndexError
OSError
FileNotFoundError
ZeroDivisionError
RuntimeError
AttributeError
TimeoutError
<noun_title>Error
""",
    "module": """
os
sys
re
json
math
time
random
logging
argparse
asyncio
csv
itertools
functools
collections
subprocess
pickle
sqlite3
threading
requests
yaml
pytest
torch
numpy as np
pandas as pd
tempfile
hashlib
shutil
statistics
heapq
bisect
uuid
glob
urllib.request
os.path
""",
    "person": """
Ana
Ravi
Miren
Yuki
Jon
Lucía
Priya
Kenji
Hans
Claire
Amina
Olga
Pedro
Mei
Leila
Tom
Nora
Iker
Sofia
Arjun
Haruka
Emma
""",
}
