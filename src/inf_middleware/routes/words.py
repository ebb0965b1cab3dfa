"""The words of the account's page, in English and Chinese."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the page says in one language; `{…}` is filled in."""

    lang: str
    title: str
    account: str
    key: str
    at: str
    level: str
    level_pinned: str
    level_top: str
    level_next: str  # {missing}, {level}
    recharged: str
    per_level: str  # {concurrency}, {requests}, {tokens}
    limits: str
    limits_none: str
    limits_away: str
    limits_note: str
    concurrency: str
    requests: str
    tokens: str
    per: Mapping[float, str]  # by the length of a window in seconds
    per_seconds: str  # {seconds}
    for_model: str  # {model}
    rate: str  # {kind}, {per}
    left: tuple[str, str]  # before and after what is left
    of_limit: str  # {limit}
    full_again: str  # {wait}
    units: tuple[str, str, str, str]  # second, minute, hour, day
    unknown: str
    balance: str
    available: str
    held: str
    credit_limit: str
    owed: str
    postpaid: str
    prepaid: str
    usage: str  # {days}
    usage_none: str
    usage_away: str
    usage_empty: str
    cost: str
    input: str
    output: str
    tokens_by_day: str
    cost_by_day: str
    by_model: str
    table: str
    day: str
    model: str
    others: str
    chart_tokens: str  # {first}, {last}, {total}, {most}, {day}
    chart_cost: str
    days_in: str  # {zone}
    refused: Mapping[str, tuple[str, str]]  # by code: headline and what to do
    refused_other: tuple[str, str]
    reload: str


_EN = Words(
    lang="en",
    title="Your account",
    account="Account",
    key="Key",
    at="As of",
    level="Level",
    level_pinned="Set by the operator; recharges do not change it.",
    level_top="The highest level.",
    level_next="{missing} more in recharges leads to {level}.",
    recharged="Recharged in all",
    per_level="{concurrency} at a time · {requests} requests and {tokens} tokens per minute",
    limits="Limits, and what is left right now",
    limits_none="Nothing is limited here.",
    limits_away="What is left cannot be told just now; the limits hold all the same.",
    limits_note="What is left is as of now; all keys of the account share it.",
    concurrency="Requests at a time",
    requests="Requests",
    tokens="Tokens",
    per=MappingProxyType({60.0: "per minute", 3_600.0: "per hour", 86_400.0: "per day"}),
    per_seconds="per {seconds} seconds",
    for_model="for {model}",
    rate="{kind} {per}",
    left=("", " left "),
    of_limit="of {limit}",
    full_again="whole again in {wait}",
    units=(" s", " min", " h", " d"),
    unknown="unknown",
    balance="Balance",
    available="Available",
    held="Held by running requests",
    credit_limit="Credit limit",
    owed="A balance below zero is what you owe.",
    postpaid="Postpaid: requests are billed as they end.",
    prepaid="Prepaid: requests are paid from the balance.",
    usage="Usage, last {days} days",
    usage_none="No usage is recorded here.",
    usage_away="The ledger cannot be read just now; nothing is lost. Try again shortly.",
    usage_empty="Nothing has been used yet.",
    cost="Cost",
    input="Input",
    output="Output",
    tokens_by_day="Tokens by day",
    cost_by_day="Cost by day",
    by_model="By model",
    table="As a table",
    day="Day",
    model="Model",
    others="All others",
    chart_tokens="{total} tokens from {first} to {last}; the most, {most}, on {day}.",
    chart_cost="{total} from {first} to {last}; the most, {most}, on {day}.",
    days_in="Days are those of {zone}.",
    refused=MappingProxyType(
        {
            "invalid_api_key": (
                "A valid API key is needed",
                "Reload this page, and give your API key as the password. The user name is free.",
            ),
            "account_suspended": (
                "This account is suspended",
                "Its key is valid, and it is served nothing for now. Ask the operator.",
            ),
            "too_many_failed_keys": (
                "Too many keys have failed",
                "Wait a minute before you try another. A valid key is taken at any time.",
            ),
            "accounts_unavailable": (
                "Accounts cannot be looked up just now",
                "Try again shortly.",
            ),
        }
    ),
    refused_other=("This page cannot be shown", "Try again shortly."),
    reload="Try again",
)

_ZH = Words(
    lang="zh",
    title="我的账户",
    account="账户",
    key="密钥",
    at="数据时间",
    level="等级",
    level_pinned="由运营方指定，充值不会改变等级。",
    level_top="已是最高等级。",
    level_next="再充值 {missing} 即可升至 {level}。",
    recharged="累计充值",
    per_level="并发 {concurrency} · 每分钟 {requests} 次请求、{tokens} tokens",
    limits="限额与当前剩余",
    limits_none="此处未设限额。",
    limits_away="暂时无法得知剩余量；限额照常生效。",
    limits_note="剩余量为当前时刻的数值，同一账户的所有密钥共享。",
    concurrency="并发请求",
    requests="请求数",
    tokens="Tokens",
    per=MappingProxyType({60.0: "每分钟 ", 3_600.0: "每小时 ", 86_400.0: "每天 "}),
    per_seconds="每 {seconds} 秒 ",
    for_model="仅限 {model}",
    rate="{per}{kind}",
    left=("剩余 ", " "),
    of_limit="/ 共 {limit}",
    full_again="{wait} 后全部恢复",
    units=(" 秒", " 分钟", " 小时", " 天"),
    unknown="未知",
    balance="余额",
    available="可用",
    held="冻结（进行中的请求）",
    credit_limit="信用额度",
    owed="余额低于零的部分为欠款。",
    postpaid="后付费：请求结束时计费。",
    prepaid="预付费：请求费用从余额扣除。",
    usage="最近 {days} 天用量",
    usage_none="此处不记录用量。",
    usage_away="账本暂时无法读取，数据不会丢失，请稍后再试。",
    usage_empty="尚无用量。",
    cost="费用",
    input="输入",
    output="输出",
    tokens_by_day="每日 Tokens",
    cost_by_day="每日费用",
    by_model="按模型",
    table="以表格查看",
    day="日期",
    model="模型",
    others="其他",
    chart_tokens="{first} 至 {last} 共 {total} tokens；最多为 {day} 的 {most}。",
    chart_cost="{first} 至 {last} 共 {total}；最多为 {day} 的 {most}。",
    days_in="日期按 {zone} 时区划分。",
    refused=MappingProxyType(
        {
            "invalid_api_key": (
                "需要有效的 API 密钥",
                "请重新加载本页，并将 API 密钥作为密码输入；用户名任意。",
            ),
            "account_suspended": ("账户已停用", "密钥有效，但账户目前不可使用。请联系运营方。"),
            "too_many_failed_keys": (
                "密钥失败次数过多",
                "请等待一分钟后再试。有效的密钥随时可用。",
            ),
            "accounts_unavailable": ("暂时无法查询账户", "请稍后再试。"),
        }
    ),
    refused_other=("暂时无法显示此页", "请稍后再试。"),
    reload="重试",
)

# The first is what those get who name none of them.
LANGUAGES = ("en", "zh")

WORDS = {"en": _EN, "zh": _ZH}
