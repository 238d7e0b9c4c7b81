typedef int mla_placeholder;
