"""Token stores: the schema of token shards, their writer, the reader `TokenStore`, and the check of a whole store."""

from flextok.data.token_schema import FORMAT, ContentHash, TokenMeta, token_dtype, token_schema, token_table
from flextok.data.token_store import StoredShard, TokenRow, TokenStore, read_manifest, read_shard_footer
from flextok.data.token_verify import summarize_tokens, verify_tokens
from flextok.data.token_writer import ShardRecord, write_token_manifest, write_token_shard

__all__ = [
    "FORMAT",
    "ContentHash",
    "ShardRecord",
    "StoredShard",
    "TokenMeta",
    "TokenRow",
    "TokenStore",
    "read_manifest",
    "read_shard_footer",
    "summarize_tokens",
    "token_dtype",
    "token_schema",
    "token_table",
    "verify_tokens",
    "write_token_manifest",
    "write_token_shard",
]
