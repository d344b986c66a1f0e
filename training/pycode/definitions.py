"""Rules for functions, classes and whole snippets.

See `snippets.py` for the notation.
"""

_FUNCTIONS = {
    "function": """
def <func>(<params>):
    <inside>
    <return>
---
def <func>(<params>):
    <return>
---
def <func>(<typed_params>) -> <type>:
    <inside>
    <return>
---
def <func>(<typed_params>) -> <type>:
    \"\"\"<docstring>\"\"\"
    <return>
---
def <func>(<typed_params>) -> <type>:
    \"\"\"<docstring>\"\"\"
    <inside>
    <return>
---
def <func>(<typed_params>) -> None:
    <body>
---
def <func>() -> <type>:
    <inside>
    <return>
---
@<decorator>
def <func>(<typed_params>) -> <type>:
    <return>
---
def <func>(<params>):
    for <n_it:v> in <list>:
        if <pred>:
            yield <elem>
---
def <func>(<n_num:k>, <n_list:s>):
    for i in range(0, len(<=s>), <=k>):
        yield <=s>[i:i + <=k>]
---
def <func>(<typed_params>) -> Iterator[<type>]:
    while <bool>:
        yield <any>
        <stmt>
---
async def <func>(<typed_params>) -> <type>:
    <n_obj> = await <call>
    <return>
---
async def <func>(<params>):
    async with <class>() as <n_obj:s>:
        return await <=s>.<verb>(<text>)
---
async def <func>(<n_list:s>):
    <n_list> = [<func>(<=a>) for <n_it:a> in <=s>]
    return await asyncio.gather(*<v_list>)
---
def <func:f>(<n_num:k>):
    if <=k> <= 1:
        return <digit>
    return <=k> <operator> <=f>(<=k> - 1)
---
def <noun>_decorator(func):
    def wrapper(*args, **kwargs):
        <stmt>
        return func(*args, **kwargs)
    return wrapper
---
def test_<func>():
    <n_obj> = <class>(<num>)
    <stmt>
    assert <bool>
---
@pytest.mark.parametrize("<noun:p>", [<int>, <int>, <int>])
def test_<func>(<=p>):
    assert <func>(<=p>) == <num>
---
@app.get("/<plural>/{<noun:p>_id}")
async def <func>(<=p>_id: int) -> dict:
    return <map>
""",
    "inside": """
<body>
---
<body>
---
<body>
---
<early>
---
<assign>
<early>
""",
    "early": """
if <bool>:
    return <any>
---
if not <v_any>:
    return None
---
for <n_it:v> in <list>:
    if <pred>:
        return <elem>
""",
    "return": """
return <any>
return <num>
return <text>
return <list>
return <map>
return <bool>
return <array>
return <num>, <num>
return <v_any>
return <call>
""",
    "params": """
<n_num>
<n_text>
<n_list>
<n_map>
<n_obj>, <n_num>
<n_list>, <n_num>=<int>
<n_text>, <n_bool>=False
<n_num>, <n_num>, <n_num>
<n_array>, <n_array>
<n_frame>, <n_text>="<noun>"
<n_text>, *<n_list>
<n_obj>, **<n_map>
*args, <n_num>=<float>
""",
    "typed_params": """
<n_num>: int
<n_num>: float, <n_num>: float
<n_text>: str
<n_text>: str, <n_num>: int = <int>
<n_list>: list[<type>]
<n_list>: Sequence[<type>], *, <n_num>: float = <float>
<n_map>: dict[str, <type>]
<n_map>: dict[str, <type>], <n_text>: str | None = None
<n_array>: np.ndarray
<n_array>: torch.Tensor, <n_num>: int
<n_frame>: pd.DataFrame, <n_list>: list[str]
<n_obj>: <class>
<n_obj>: <class>, <n_bool>: bool = <boolean>
<n_obj>: Path
""",
    "docstring": """
<third> the <adjective> <noun>.
<third> <plural> from a <noun>.
Return the <noun> of the <noun>.
Say whether the <noun> is <adjective>.
<third> each <noun> in the <plural>.
""",
    "decorator": """
lru_cache(maxsize=<int>)
staticmethod
contextmanager
<verb>_<noun>
torch.no_grad()
app.route("/<plural>/<noun>")
retry(times=<digit>, <noun>="<noun>")
pytest.fixture
""",
}
_CLASSES = {
    "class_block": """
class <class><base>:
    def __init__(self, <noun:a>, <plural:b>=None):
        self.<=a> = <=a>
        self.<=b> = <=b> or []

    def <func>(self, <n_num>):
        return self.<=a> <operator> <num>
---
class <class>:
    def __init__(self, <n_num:a>: int, <n_text:b>: str = "<words>") -> None:
        self.<=a> = <=a>
        self._<=b> = <=b>
---
class <class><base>:
    \"\"\"<docstring>\"\"\"

    def <func>(self) -> <type>:
        return <self_value>
---
class <class>:
    def __init__(self):
        self.<plural:a> = <map>

    def <func>(self, <n_text:k>, <n_num>=<int>):
        self.<=a>[<=k>] = <num>
        <inside>
---
@dataclass
class <class>:
    <field>
    <field>
---
@dataclass(frozen=True)
class <class>:
    <field>
    <field>
    <noun>: <type> = <any>
---
@dataclass
class <class>:
    <noun>: <type>
    <plural:a>: list[<type>] = field(default_factory=list)

    def <func>(self) -> int:
        return len(self.<=a>)
---
class <class>(nn.Module):
    def __init__(self, <n_num:a>=<int>):
        super().__init__()
        self.<noun:b> = nn.Linear(<=a>, <int>)

    def forward(self, x):
        return <activation>(self.<=b>(x))
---
class <class>(Enum):
    <upper> = "<noun>"
    <upper>_<upper> = <int>
---
class <class>(Exception):
    \"\"\"Raised when the <noun> is <adjective>.\"\"\"
---
class <class>(ABC):
    @abstractmethod
    def <func>(self, <typed_params>) -> <type>: ...
---
class <class><base>:
    <noun>: ClassVar[<type>] = <any>

    def __repr__(self) -> str:
        return f"<class>({self.<noun>})"
---
class <class>(NamedTuple):
    <field>
    <field>
---
class <class><base>:
    @classmethod
    def from_<noun>(cls, <n_text:t>):
        return cls(<=t>.<verb>(), <num>)
---
class <class>:
    def __enter__(self):
        <stmt>
        return self

    def __len__(self):
        return len(self.<plural>)
---
class <class><base>:
    <field>

    @property
    def <noun>(self) -> <type>:
        return <self_value>
---
class <class>:
    def __eq__(self, other: object) -> bool:
        return self.<noun:a> == other.<=a> and <bool>
""",
    "field": """
<n_num>: int
<n_num>: int = <int>
<n_num>: float = <float>
<n_text>: str
<n_text>: str = "<words>"
<n_list>: list[<type>]
<n_obj>: <type> | None
""",
    "base": """
(<class>)
(Base<class>)
<empty>
<empty>
""",
    "self_value": """
self.<noun>
self._<noun>[<position>]
self.<noun> <operator> <num>
len(self.<plural>) <operator> <num>
[<elem> for <n_it:v> in self.<plural>]
self.<noun>.<verb>(<v_any>)
f"{self.<noun>}: {self.<noun>:.<digit>f}"
sum(<elem_num> for <n_it:v> in self.<plural> if <pred>)
self.<func>(<any>) or <any>
""",
}
_SNIPPETS = {
    "snippet": """
<imports>

<piece>
---
<imports>
<script>
---
<piece>
---
<piece>
---
<piece>
---
<script>
---
<script>
---
<piece>

<script>
---
<piece>
---
<import>
<script>
---
<script>
---
<script>
---
if __name__ == "__main__":
    <body>
""",
    "piece": """
<function>
<function>
<class_block>
""",
    "imports": """
<import>
---
<import>
<import>
---
<import>
<import>
<import>
""",
    "script": """
<stmt>
<stmt>
---
<stmt>
<block>
---
<stmt>
<block>
<stmt>
---
<block>
<stmt>
---
<stmt>
<stmt>
<stmt>
---
<block>
---
<stmt>
<stmt>
<stmt>
<stmt>
""",
}
DEFINITION_RULES = _FUNCTIONS | _CLASSES | _SNIPPETS
