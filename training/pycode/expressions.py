"""Rules for numbers, texts, conditions, objects and calls.

See `snippets.py` for the notation.
"""

_NUMBERS = {
    "num": """
<num> + <num>
<num> - <num>
<num> * <num>
<num> / <num>
<num> // <int>
<num> % <int>
<num> ** <digit>
(<num> + <num>) / <num>
(<num> - <num>) * <num>
len(<list>)
len(<text>)
sum(<list>)
sum(<elem_num> for <n_it:v> in <list>)
max(<num>, <num>)
min(<list>, default=<int>)
abs(<num>)
round(<num>, <digit>)
int(<text>)
float(<text>)
math.sqrt(<num>)
math.log(<num> + <int>)
<list_base>[<position>]
<map_base>.get(<text>, <int>)
<map_base>[<text>]
<num> if <bool> else <num>
<text_base>.count("<char>")
<array_base>.mean().item()
float(<array_base>.max())
random.randint(<digit>, <int>)
time.time() - <num>
-<v_num>
<call>
""",
    "num_leaf": """
<v_num>
<v_num>
<v_num>
<int>
<int>
<float>
len(<v_list>)
<v_obj>.<noun>
<v_num> + <digit>
<v_num> * <float>
""",
    "elem_num": """
<=v>
<=v> * <=v>
<=v> * <float>
<=v> + <int>
len(<=v>)
<=v>.<noun>
<=v>["<noun>"]
abs(<=v> - <v_num>)
int(<=v>)
1
""",
}
_TEXTS = {
    "text": """
<text> + <text>
<text_base>.strip()
<text_base>.lower()
<text_base>.upper()
<text_base>.replace("<char>", "<char>")
<text_base>.split("<char>")[<position>]
<text_base>[:<int>]
<text_base>[<digit>:-<digit>]
<text_base>[::-1]
"<char> ".join(<list>)
", ".join(<elem_text> for <n_it:v> in <list>)
str(<num>)
str(<num>).zfill(<digit>)
<fstring>
<fstring>
<text_base>.ljust(<int>, "<char>")
<text> or <text>
<text> if <bool> else <text>
<map_base>[<text>]
os.path.join(<v_text>, "<file>")
os.environ.get("<upper>", "<words>")
json.dumps(<map>, indent=<digit>)
re.sub(r"<regex>", "<char>", <text>)
"<words> %s" % <v_text>
"<words>: {}".format(<num>)
datetime.now().strftime("<dateform>")
<call>
""",
    "text_leaf": """
<v_text>
<v_text>
<v_text>
"<words>"
"<noun>"
"<person>"
"<file>"
<v_obj>.name
<fstring>
""",
    "fstring": """
f"<words> {<v_num>}"
f"{<v_text>}: {<v_num>}"
f"<noun> {<v_num>:.<digit>f}"
f"{<v_num>} of {len(<v_list>)} <plural>"
f"<words> {<v_text>!r}"
f"{<v_text>}_{<v_num>:0<digit>d}.<ext>"
f"Hello {<v_text>}, you have {<v_num>} <plural>"
f"{<v_obj>.<noun>}/{<v_obj>.<noun>}"
f"<noun>={<v_num>}, <noun>={<v_num>:.<digit>f}"
f"{<v_num> * 100:.1f}% <words>"
f"{<v_map>['<noun>']} <words>"
f"/api/<plural>/{<v_num>}"
""",
    "text_base": """
<v_text>
<v_text>
<v_text>
"<words>"
<v_text>.strip()
<v_obj>.name
<v_map>["<noun>"]
str(<num>)
<call>
""",
    "words": """
<noun>
<adjective> <noun>
<verb> the <noun>
no <noun> found
<noun> and <noun>
<person>
<person> <verbs> <digit> <plural>
failed to <verb> <noun>
<noun> is <adjective>
<int> <plural>
<adjective> <noun> of the <noun>
unknown <noun>
""",
    "elem_text": """
str(<=v>)
<=v>.upper()
<=v>.name
f"{<=v>:.<digit>f}"
f"<noun> {<=v>}"
<=v>.strip()
<=v>["<noun>"]
""",
    "plain_text": """
<=v>
<=v>.strip()
<=v>.strip().lower()
<=v>.upper()
<=v>.rstrip("<char>")
<=v>.replace("<char>", "<char>")
<=v>.split("<char>")[<position>]
<=v>[<digit>:]
""",
}
_LOGIC = {
    "bool": """
<num> > <num>
<num> < <num>
<num> == <num>
<num> <= <num>
<num> != <num>
<digit> <= <num> < <num>
<text> in <list>
<text> not in <map>
<text> == <text>
<bool> and <bool>
<bool> or <bool>
not <v_bool>
not (<bool> or <bool>)
<v_obj> is None
<v_obj> is not None
isinstance(<v_any>, <type>)
any(<pred> for <n_it:v> in <list>)
all(<pred> for <n_it:v> in <list>)
<text_base>.startswith("<char>")
<text_base>.endswith(".<ext>")
<text_base>.isdigit()
os.path.exists(<text>)
hasattr(<v_obj>, "<noun>")
torch.cuda.is_available()
np.allclose(<array>, <array>)
bool(<list>)
<call>
""",
    "bool_leaf": """
<v_bool>
<v_num> > <int>
<v_num> == <int>
<v_text> == "<noun>"
not <v_list>
<v_text> in <v_map>
<v_obj>.is_<adjective>
""",
    "obj": """
<class>()
<class>(<num>)
<class>(<text>, <num>)
<class>(<noun>=<num>)
<class>(<noun:a>=<text>, max_<noun>=<num>)
<class>.from_<noun>(<text>)
Path("<noun>") / <v_text>
Path("<folder>")
logging.getLogger("<noun>")
argparse.ArgumentParser(description="<words>")
datetime(<year>, <digit>, <digit>)
timedelta(days=<int>)
re.compile(r"<regex>")
nn.Sequential(nn.Linear(<int>, <int>), nn.ReLU(), nn.Linear(<int>, <int>))
torch.optim.Adam(<v_obj>.parameters(), lr=<float>)
requests.get(<text>, timeout=<int>)
sqlite3.connect("<noun>.db")
partial(<func>, <noun>=<num>)
<call>
""",
    "obj_leaf": """
<v_obj>
<v_obj>
<class>()
<v_obj>.<noun>
None
""",
    "any": """
<num>
<text>
<list>
<map>
<bool>
<obj>
<array>
<set>
""",
    "call": """
<func>(<v_any>)
<func>(<num>, <num>)
<func>(<text>)
<func>(<list>, <noun>=<num>)
<func>(<v_any>, <noun>=<any>)
<func>(*<v_list>)
<v_obj>.<verb>(<num>)
<v_obj>.<func>(<text>)
<v_obj>.<func>()
<v_obj>.<noun>.<verb>(<v_any>)
<class>(<v_any>).<verb>()
""",
    "call_leaf": """
<func>()
<func>(<v_any>)
<v_obj>.<func>()
<v_obj>.<verb>(<v_any>)
""",
    "v_any": """
<v_num>
<v_text>
<v_list>
<v_map>
<v_obj>
""",
}
EXPRESSION_RULES = _NUMBERS | _TEXTS | _LOGIC
