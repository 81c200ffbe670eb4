#include "network/nft_netlink.h"

#include <arpa/inet.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <net/if.h>

namespace thaw::network {
namespace {

constexpr std::size_t kListBytes = 60000;  // a list of elements is one attribute, at most 64 KiB

nfgenmsg* start(nlmsghdr* header) {
  auto* payload = static_cast<nfgenmsg*>(mnl_nlmsg_put_extra_header(header, sizeof(nfgenmsg)));
  payload->version = NFNETLINK_V0;
  return payload;
}

// nftables takes messages between these two only, and does all of them or none.
void mark(Batch& batch, int type, const std::string& what) {
  start(batch.message(type, 0, what, 64, true))->res_id = htons(NFNL_SUBSYS_NFTABLES);
}

nlmsghdr* request(Batch& batch, int type, int flags, const std::string& what, std::size_t room) {
  auto* header = batch.message((NFNL_SUBSYS_NFTABLES << 8) | type, flags, what, room);
  start(header)->nfgen_family = NFPROTO_INET;
  return header;
}

void put_value(nlmsghdr* header, int attribute, const void* data, std::size_t size) {
  nlattr* nest = mnl_attr_nest_start(header, static_cast<std::uint16_t>(attribute));
  mnl_attr_put(header, NFTA_DATA_VALUE, size, data);
  mnl_attr_nest_end(header, nest);
}

void put_number(nlmsghdr* header, int attribute, std::uint32_t value) {
  mnl_attr_put_u32(header, static_cast<std::uint16_t>(attribute), htonl(value));
}

template <typename Body>
void put_expression(nlmsghdr* header, const char* name, Body body) {
  nlattr* element = mnl_attr_nest_start(header, NFTA_LIST_ELEM);
  mnl_attr_put_strz(header, NFTA_EXPR_NAME, name);
  nlattr* data = mnl_attr_nest_start(header, NFTA_EXPR_DATA);
  body();
  mnl_attr_nest_end(header, data);
  mnl_attr_nest_end(header, element);
}

}  // namespace

void fill_map(const std::string& table, const std::string& map,
              const std::vector<MapElement>& elements) {
  const std::string what = fmt::format("fill map {} of nft table {}", map, table);
  Batch batch(256 * 1024);
  mark(batch, NFNL_MSG_BATCH_BEGIN, what);
  for (std::size_t next = 0; next < elements.size();) {
    auto* header = request(batch, NFT_MSG_NEWSETELEM, NLM_F_CREATE, what, kListBytes + 1024);
    mnl_attr_put_strz(header, NFTA_SET_ELEM_LIST_TABLE, table.c_str());
    mnl_attr_put_strz(header, NFTA_SET_ELEM_LIST_SET, map.c_str());
    nlattr* list = mnl_attr_nest_start(header, NFTA_SET_ELEM_LIST_ELEMENTS);
    for (; next < elements.size() && header->nlmsg_len < kListBytes; ++next) {
      const MapElement& each = elements[next];
      nlattr* element = mnl_attr_nest_start(header, NFTA_LIST_ELEM);
      char name[IFNAMSIZ] = "";  // the kernel compares all 16 bytes
      each.interface.copy(name, sizeof name - 1);
      put_value(header, NFTA_SET_ELEM_KEY, name, sizeof name);
      put_value(header, NFTA_SET_ELEM_DATA, each.value.bytes.data(), each.value.size());
      mnl_attr_nest_end(header, element);
    }
    mnl_attr_nest_end(header, list);
  }
  mark(batch, NFNL_MSG_BATCH_END, what);
  send(open_netlink(NETLINK_NETFILTER), batch);
}

void add_rewrite(const std::string& table, const std::string& chain, const Rewrite& rewrite) {
  const std::string what = fmt::format("add a rule to chain {} of nft table {}", chain, table);
  Batch batch;
  mark(batch, NFNL_MSG_BATCH_BEGIN, what);
  auto* header = request(batch, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, what, 1024);
  mnl_attr_put_strz(header, NFTA_RULE_TABLE, table.c_str());
  mnl_attr_put_strz(header, NFTA_RULE_CHAIN, chain.c_str());
  nlattr* expressions = mnl_attr_nest_start(header, NFTA_RULE_EXPRESSIONS);
  put_expression(header, "immediate", [&] {
    put_number(header, NFTA_IMMEDIATE_DREG, NFT_REG_1);
    put_value(header, NFTA_IMMEDIATE_DATA, rewrite.value.bytes.data(), rewrite.value.size());
  });
  put_expression(header, "payload", [&] {
    put_number(header, NFTA_PAYLOAD_SREG, NFT_REG_1);
    put_number(header, NFTA_PAYLOAD_BASE, NFT_PAYLOAD_TRANSPORT_HEADER);
    put_number(header, NFTA_PAYLOAD_OFFSET, rewrite.offset);
    put_number(header, NFTA_PAYLOAD_LEN, static_cast<std::uint32_t>(rewrite.value.size()));
    put_number(header, NFTA_PAYLOAD_CSUM_TYPE, NFT_PAYLOAD_CSUM_INET);
    put_number(header, NFTA_PAYLOAD_CSUM_OFFSET, rewrite.checksum_offset);
  });
  mnl_attr_nest_end(header, expressions);
  mark(batch, NFNL_MSG_BATCH_END, what);
  send(open_netlink(NETLINK_NETFILTER), batch);
}

}  // namespace thaw::network
